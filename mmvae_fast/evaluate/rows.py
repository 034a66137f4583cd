"""The rows that a model is judged on, gathered and checked, and the subsets of the modalities that it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmvae_fast.functional import row_seed
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.models.batch import Mask, check_batch
from mmvae_fast.systems import FusionClassifier
from mmvae_fast.systems.base import RESERVED, System
from mmvae_fast.systems.loop import SystemCollate
from mmvae_fast.training.data import Data, batches, count_rows, split_mask
from mmvae_fast.training.seeding import derive

Judged = MultimodalVAE | System
UNKNOWN = -1  # the label of a row that has none
MOST = 8  # modalities whose subsets are all taken: 255
Subset = tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """N rows of a data set, on the device they came on. What a row lacks is 0 there, and False in the mask."""

    data: dict[str, Tensor]
    """By modality [N, *shape]; a modality that no row has may be absent."""
    mask: Tensor
    """bool [N, M], columns in the order of ``names``."""
    names: tuple[str, ...]
    labels: Tensor | None = None
    """int64 [N], -1 where unknown."""
    condition: Tensor | None = None
    """[N, D] of a GAN with a ``condition_dim``."""

    @classmethod
    def of(cls, model: Judged, data: Data | Rows, labels: Any = None, *, what: str = "data") -> Rows:
        """From what :func:`mmvae_fast.training.fit` takes: a dict of tensors, perhaps with a "mask", or a Dataset; for
        a system what :func:`mmvae_fast.systems.fit` takes, perhaps with a "label" and a "condition".

        Args:
            labels: int [N], -1 where unknown: a tensor, an array or a list; None for the "label" of the data, if any.

        Raises:
            ValueError, TypeError: naming the modality, what came and what was expected.
        """
        if isinstance(data, Rows):
            return data if labels is None else data.labelled(labels)
        whole, extras = _read(model, data, what)
        rows = cls.gather(model, map(split_mask, whole))
        labels = extras.get("label") if labels is None else labels
        condition = extras.get("condition")
        if condition is not None and len(condition) != len(rows):
            raise ValueError(f"{what}: condition has {len(condition)} rows, expected {len(rows)}")
        rows = replace(rows, condition=condition)
        return rows if labels is None else rows.labelled(labels)

    @classmethod
    def gather(cls, model: Judged, batches: Iterable[tuple[Mapping[str, Tensor], Mask]]) -> Rows:
        """From batches of modalities and their masks, in order."""
        parts = []
        for tensors, mask in batches:
            device = next(iter(tensors.values())).device
            parts.append(check_batch(model.modalities, tensors, mask, dtype=model.dtype, device=device))
        if not parts:
            raise ValueError("batches is empty, expected at least one row")
        gathered = {name: torch.cat([part.data[name] for part in parts]) for name in parts[0].data}
        return cls(gathered, torch.cat([part.mask for part in parts]), tuple(model.modalities))

    def __len__(self) -> int:
        return self.mask.shape[0]

    def labelled(self, labels: Any) -> Rows:
        """The same rows with labels, checked."""
        found = torch.as_tensor(labels)
        if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
            raise TypeError(f"labels is {found.dtype}, expected whole numbers: the classes, and -1 where unknown")
        if tuple(found.shape) != (len(self),):
            raise ValueError(f"labels has shape {list(found.shape)}, expected [N] = [{len(self)}]")
        if found.numel() and int(found.min()) < UNKNOWN:
            raise ValueError(f"labels holds {int(found.min())}, expected classes from 0 on, and -1 where unknown")
        return replace(self, labels=found.long().cpu())

    def observed(self, name: str) -> Tensor:
        """Which rows have a modality, bool [N]."""
        return self.mask[:, self.names.index(name)]

    def having(self, subset: Sequence[str]) -> Tensor:
        """Which rows have all of a subset: their numbers, in order."""
        columns = [self.names.index(name) for name in subset]
        return self.mask[:, columns].all(1).nonzero().squeeze(1)

    def take(self, rows: Tensor) -> Rows:
        """Some rows, by number."""
        data = {name: x[rows.to(x.device)] for name, x in self.data.items()}
        labels = None if self.labels is None else self.labels[rows.cpu()]
        condition = None if self.condition is None else self.condition[rows.to(self.condition.device)]
        return Rows(data, self.mask[rows.to(self.mask.device)], self.names, labels, condition)

    def with_known_label(self) -> Rows:
        """The rows whose label is known."""
        if self.labels is None:
            raise ValueError("labels is None, expected the class of every row, and -1 where unknown")
        return self.take((self.labels != UNKNOWN).nonzero().squeeze(1))

    def halves(self, seed: int) -> tuple[Rows, Rows]:
        """Two halves at random, in random order; the first one is the larger of two unequal ones."""
        order = shuffled(len(self), seed, "halves")
        middle = (len(self) + 1) // 2
        return self.take(order[:middle]), self.take(order[middle:])

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        """(number of the first row, batch, mask) in order, on a device."""
        for first in range(0, len(self), size):
            some = slice(first, first + size)
            yield first, {name: x[some].to(device) for name, x in self.data.items()}, self.mask[some].to(device)


def _read(model: Judged, data: Data, what: str) -> tuple[Iterable[Mapping[str, Any]], dict[str, Tensor]]:
    """Batches of modalities, and what the data of a system hold beside them."""
    if not isinstance(model, System):
        count = count_rows(what, model, data)
        return [data] if isinstance(data, Mapping) else batches(data, model, count, 256, None, 0), {}
    like_a_model: Any = model
    if isinstance(data, Mapping):
        extras = {key: torch.as_tensor(data[key]) for key in RESERVED if data.get(key) is not None}
        inputs = {key: x for key, x in data.items() if key not in RESERVED}
        count_rows(what, like_a_model, inputs)
        return [inputs], extras
    count_rows(what, like_a_model, data)
    collate = SystemCollate(model)
    collate.extras = RESERVED  # an evaluation has use for labels that the training has none for
    read = list(DataLoader(data, 256, collate_fn=collate))
    extras = {key: torch.cat([batch.pop(key) for batch in read]) for key in RESERVED if key in read[0]}
    return read, extras


def shuffled(count: int, seed: int, *what: object) -> Tensor:
    """The numbers of ``count`` rows in a random order, so that the first of them stand for all: data are often sorted
    by class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, *what)))


def name_of(subset: Sequence[str]) -> str:
    """How tables call a subset: "image+text"."""
    return "+".join(subset)


def targets(model: Judged) -> list[str]:
    """The modalities a model can decode: all but those it takes as given."""
    return [name for name in model.modalities if name not in _always_given(model)]


def _always_given(model: Judged) -> Sequence[str]:
    return model.always_given if isinstance(model, MultimodalVAE) else ()


def choose_subsets(model: Judged, subsets: str | Sequence[Sequence[str]] = "all") -> list[Subset]:
    """Subsets of the modalities, each in their order, without duplicates; with what the model always takes as given.

    Args:
        subsets: "all" of up to 8 modalities, small ones first; or a list of lists of names.

    Raises:
        ValueError, TypeError: an empty subset, an unknown name, too many.
    """
    names = list(model.modalities)
    always_given = _always_given(model)
    if isinstance(subsets, str):
        if subsets != "all":
            raise ValueError(f"subsets is {subsets!r}, expected 'all' or a list of lists of {names}")
        if len(names) > MOST:
            raise ValueError(
                f"subsets is 'all', but of {len(names)} modalities there are {2 ** len(names) - 1}: list some"
            )
        chosen: list[Any] = [c for count in range(1, len(names) + 1) for c in combinations(names, count)]
    else:
        chosen = list(subsets)
    found: dict[Subset, None] = {}
    for members in chosen:
        listed = [members] if isinstance(members, str) else list(members)
        if not listed or any(name not in names for name in listed):
            raise ValueError(f"subsets holds {members!r}, expected some of {names}")
        found[tuple(name for name in names if name in listed or name in always_given)] = None
    if not found:
        raise ValueError(f"subsets is empty, expected 'all' or a list of lists of {names}")
    return list(found)


def batch_seed(seed: int, first: int, *what: object) -> Tensor:
    """The seed of one use of the noise in the batch that begins at row ``first``: a row's noise is the same in batches
    of any size."""
    return row_seed(derive(seed, *what), first)


@contextmanager
def judged(model: nn.Module) -> Iterator[None]:
    """The model in ``eval()`` and without gradients; afterwards every part is in the mode it came in."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def reconstructions(
    model: MultimodalVAE, rows: Rows, source: Sequence[str], to: Sequence[str], batch_size: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """What the model predicts from a source that all rows have: (number of the first row, predictions)."""
    for first, batch, _ in rows.batches(batch_size, model.device):
        yield first, model.reconstruct({name: batch[name] for name in source}, to=list(to))


def latents(
    model: MultimodalVAE | FusionClassifier, rows: Rows, source: Sequence[str], batch_size: int = 256
) -> Tensor:
    """The latent that stands for each row's posterior given a source that all rows have: [N, D], on the CPU."""
    found = []
    with judged(model):
        for _, batch, _ in rows.batches(batch_size, model.device):
            encoded = model.encode({name: batch[name] for name in source})
            found.append((encoded if isinstance(encoded, Tensor) else encoded.point).cpu())
    return torch.cat(found) if found else torch.zeros(0, model.latent_dim, dtype=model.dtype)


def generate(
    model: MultimodalVAE, rows: Rows, source: Sequence[str], to: Sequence[str], *, seed: int, batch_size: int = 256
) -> dict[str, Tensor]:
    """Decode a draw of every row's posterior given a source that all rows have, private latents drawn as well (of what
    is not in the source, from their prior): [N, *shape] by modality, on the CPU."""
    from mmvae_fast.models import CVAE

    parts: dict[str, list[Tensor]] = {name: [] for name in to}
    with judged(model):
        for first, everything, _ in rows.batches(batch_size, model.device):
            batch = {name: everything[name] for name in source}
            z = model.encode(batch).sample(seed=batch_seed(seed, first, "shared"))
            private = model.encode_private(batch)
            for name in to:
                latent = z
                if name in private:
                    own = private[name].sample(seed=batch_seed(seed, first, "private", name))
                    latent = torch.cat([z, own.to(z.dtype)], -1)
                given: dict[str, Any] = {"condition": batch} if isinstance(model, CVAE) else {}
                parts[name].append(model.decode(latent, [name], **given)[name].cpu())
    return {name: torch.cat(part) for name, part in parts.items() if part}


def size_of_batch(value: Any) -> int:
    """A batch size, checked."""
    if type(value) is not int or value < 1:
        raise ValueError(f"batch_size is {value!r}, expected 1 or more")
    return value
