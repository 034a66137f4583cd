"""Lists of subsets of the modalities, as names and as bitmasks (bit m = modality m)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST = 16  # modalities whose 2^M - 1 subsets are all taken


def bitmasks(owner: str, subsets: Iterable[Sequence[str]], names: Sequence[str]) -> list[int]:
    """Of lists of names.

    Raises:
        ValueError: no subset, an empty one, or a name that is not there.
    """
    masks = []
    for members in subsets:
        if not members or any(name not in names for name in members):
            raise ValueError(f"{owner}: subsets holds {members!r}, expected some of {list(names)}")
        masks.append(sum(1 << list(names).index(name) for name in set(members)))
    if not masks:
        raise ValueError(f"{owner}: subsets is empty, expected at least one, or None for all")
    return masks
