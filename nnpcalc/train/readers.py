"""Labelled structures from files: one function, the format chosen by the suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import glob, has_magic
from itertools import pairwise
from pathlib import Path

import numpy as np

from nnpcalc.train.data import UNDECIDED, Dataset, Part, join, read_npz
from nnpcalc.train.read_hdf5 import read_hdf5
from nnpcalc.train.read_xyz import read_xyz

LABELS = ("energy", "forces", "charges")
NO_LABELS: Mapping[str, str] = {}

READERS: dict[str, Callable[[str | Path, Mapping[str, str]], Part]] = {
    ".npz": lambda path, _: read_npz(path),
    ".xyz": read_xyz,
    ".extxyz": read_xyz,
    ".traj": read_xyz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}


def read_files(
    paths: Sequence[str | Path], labels: Mapping[str, str] = NO_LABELS
) -> tuple[Dataset, np.ndarray]:
    """All conformers of the files, and their split [M] as `nnpcalc.train.data.Part` counts it.

    Args:
        paths: npz corpora (`nnpcalc.train.data.read_npz`), extended XYZ and ASE trajectories
            (`read_xyz`), HDF5 in the layout of SPICE or of ModelForge (`read_hdf5`). A name with
            ``*``, ``?`` or ``[`` that is no file stands for all that fit it, in order.
        labels: names of the labels in XYZ and HDF5 files, by "energy", "forces" and "charges";
            what is not named is looked for under its usual names.

    Raises:
        ValueError: an unknown suffix, or a file that says too little or contradicts itself.
    """
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise ValueError(f"labels has no {unknown[0]!r}; it names {', '.join(LABELS)}")
    parts = []
    for path in [name for pattern in paths for name in matching(pattern)]:
        suffix = Path(path).suffix.lower()
        if suffix not in READERS:
            raise ValueError(f"{path}: unknown suffix {suffix!r}; known are {', '.join(READERS)}")
        parts.append(READERS[suffix](path, labels))
    return join(parts)


def matching(pattern: str | Path) -> list[str]:
    """The files that a shell's pattern stands for, sorted; a plain name stands for itself."""
    name = str(pattern)
    if Path(name).exists() or not has_magic(name):
        return [name]
    found = sorted(glob(name))
    if not found:
        raise FileNotFoundError(f"no file fits {name}")
    return found


def read_dataset(
    paths: Sequence[str | Path],
    *,
    labels: Mapping[str, str] = NO_LABELS,
    validation_fraction: float = 0.05,
    split_by: str = "molecule",
    seed: int = 1,
) -> tuple[Dataset, Dataset]:
    """Read files into (training, validation) sets.

    A conformer goes where its file says. Where the file says nothing, it goes where others of its
    molecule are, or else whole molecules are drawn for validation: no validation conformer has a
    sibling in training.

    Args:
        paths, labels: see `read_files`.
        validation_fraction: share of the conformers without a split that go to validation.
        split_by: "molecule", or "conformer" to draw single structures; all copies of one.
        seed: of the drawing.

    Raises:
        ValueError: see `read_files`; or the drawing is impossible.
    """
    dataset, split = read_files(paths, labels)
    if split_by not in ("molecule", "conformer"):
        raise ValueError(f"split_by must be 'molecule' or 'conformer', not {split_by!r}")
    if (split == UNDECIDED).any():
        groups = dataset.molecule if split_by == "molecule" else structures(dataset)
        split = follow(groups, split)
        undecided = np.flatnonzero(split == UNDECIDED)
        if undecided.size:
            split[undecided] = draw(groups[undecided], validation_fraction, seed)
    return dataset.take(np.flatnonzero(split == 0)), dataset.take(np.flatnonzero(split == 1))


def structures(dataset: Dataset) -> np.ndarray:
    """A number for every conformer [M], the same for those of the same atoms, places and state."""
    keys = [
        b"".join(
            [
                np.array([dataset.charge[row], dataset.multiplicity[row]]).tobytes(),
                dataset.numbers[first:last].tobytes(),
                dataset.positions[first:last].tobytes(),
            ]
        )
        for row, (first, last) in enumerate(pairwise(dataset.offsets.tolist()))
    ]
    number: dict[bytes, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)


def follow(groups: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Send the undecided to where others of their group are; to training, if these are apart.

    Args:
        groups: the group of each conformer [M].
        split: as `nnpcalc.train.data.Part` counts it [M].
    """
    decided = split != UNDECIDED
    if not decided.any():
        return split
    order = np.argsort(split[decided], kind="stable")
    names, first = np.unique(groups[decided][order], return_index=True)
    place = np.searchsorted(names, groups).clip(max=names.size - 1)
    known = ~decided & (names[place] == groups)
    return np.where(known, split[decided][order][first[place]], split)


def draw(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw whole groups for validation until ``fraction`` of the conformers is reached.

    Args:
        groups: the group of each conformer [M].
        fraction: 0 to below 1; above 0 at least one group is drawn.
        seed: of the order in which groups are considered; one that no longer fits is passed over.

    Returns:
        1 where drawn, else 0: [M].
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"validation_fraction must lie in [0, 1), got {fraction}")
    names, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if fraction == 0.0:
        return np.zeros(groups.size, dtype=np.int64)
    if names.size < 2:
        raise ValueError(
            f"all {groups.size} conformers without a split are of one molecule: none can be kept "
            "for validation whole; set split_by = 'conformer'"
        )
    room = fraction * groups.size
    chosen = np.zeros(names.size, dtype=np.int64)
    for k in np.random.default_rng(seed).permutation(names.size):
        if counts[k] <= room:
            chosen[k] = 1
            room -= counts[k]
    if not chosen.any():
        chosen[np.argmin(counts)] = 1
    return chosen[group]
