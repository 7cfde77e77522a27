"""Labelled structures from files: one function, the format chosen by the suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import glob, has_magic
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

    A conformer goes where its file says. Where the file says nothing, whole molecules are drawn
    for validation, so that no validation conformer has a sibling in training.

    Args:
        paths, labels: see `read_files`.
        validation_fraction: share of the conformers without a split that go to validation.
        split_by: "molecule", or "conformer" to draw single conformers.
        seed: of the drawing.

    Raises:
        ValueError: see `read_files`; or the drawing is impossible.
    """
    dataset, split = read_files(paths, labels)
    undecided = np.flatnonzero(split == UNDECIDED)
    if undecided.size:
        if split_by == "molecule":
            groups = dataset.molecule[undecided]
        elif split_by == "conformer":
            groups = undecided
        else:
            raise ValueError(f"split_by must be 'molecule' or 'conformer', not {split_by!r}")
        split[undecided] = draw(groups, validation_fraction, seed)
    return dataset.take(np.flatnonzero(split == 0)), dataset.take(np.flatnonzero(split == 1))


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
