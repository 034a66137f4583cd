"""How far an evaluation has come, for a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Is told what is measured next, how many steps are done, and of how many."""


class Steps:
    """The stages of an evaluation in their order, each of so many steps; one that is left out is passed over."""

    def __init__(self, progress: Progress | None, stages: Mapping[str, int]) -> None:
        self.progress, self.total = progress, sum(stages.values())
        self.first = dict(zip(stages, [sum(list(stages.values())[:i]) for i in range(len(stages))], strict=True))

    def __call__(self, stage: str, items: Collection[T]) -> Iterator[T]:
        """The items of a stage, each a step."""
        for i, item in enumerate(items):
            self._tell(stage, self.first[stage] + i)
            yield item

    def end(self) -> None:
        self._tell("done", self.total)

    def _tell(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done, self.total)
