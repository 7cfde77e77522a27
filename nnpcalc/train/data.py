"""Labelled structures in memory, and batches of them filled by atoms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.train.checks import (
    IN_FILES,
    OPTIONAL,
    SHAPES_PER_ATOM,
    check_arrays,
    check_multiplicity,
    electrons,
)

#: What a reader returns: the fields of a `Dataset`, and "split" [M]: 0 for training, 1 for
#: validation, above 1 for neither, -1 where the file does not say.
Part = dict[str, np.ndarray]
UNDECIDED = -1
PER_ATOM = (*SHAPES_PER_ATOM, "soft_modes")
TYPES = {"numbers": np.uint8, "positions": np.float32, "forces": np.float32, "energy": np.float64,
         "partial_charges": np.float32, "given_charges": np.float32,
         "soft_modes": np.float16}  # fmt: skip
#: What an npz file must hold, and what it may hold.
NEEDED = ("n_atoms", "charge", "energy", "molecule", "source", "numbers", "positions", "forces")
FURTHER = ("multiplicity", "split", "charges", "given_charges", "soft_modes")


@dataclass(frozen=True)
class Dataset:
    """Conformers with labels; per-atom arrays are concatenated over the M conformers.

    Attributes:
        n_atoms: [M], int64.
        numbers: atomic numbers [A], uint8.
        positions: [A, 3], float32, Å.
        energy: total energies [M], float64, eV.
        forces: [A, 3], float32, eV/Å.
        charge: total charges [M], int64, e.
        multiplicity: 2S + 1 [M], int64.
        source: a number or a name per conformer [M] to report errors by.
        molecule: a whole number per conformer [M]; conformers of one molecule share it.
        partial_charges: labels [A], float32, e; NaN where there is none, everywhere if not given.
        given_charges: input of networks that take partial charges as they are told [A], float32,
            e; NaN likewise.
        soft_modes: directions in which a conformer gives way [A, K, 3], float16: eigenvectors of
            its Hessian, or of a model of it, over their eigenvalues, Å^2/eV. Zero where a conformer
            has fewer than K; K is 0 if none has any.
    """

    n_atoms: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    charge: np.ndarray
    multiplicity: np.ndarray
    source: np.ndarray
    molecule: np.ndarray
    partial_charges: np.ndarray = None  # type: ignore[assignment]  # filled below
    given_charges: np.ndarray = None  # type: ignore[assignment]  # likewise
    soft_modes: np.ndarray = None  # type: ignore[assignment]  # likewise

    def __post_init__(self) -> None:
        if self.soft_modes is None:
            object.__setattr__(self, "soft_modes", no_modes(self.numbers.size))
        for name in OPTIONAL:
            if getattr(self, name) is None:
                unknown = np.full(self.numbers.size, np.nan, dtype=np.float32)
                object.__setattr__(self, name, unknown)

    def __len__(self) -> int:
        return int(self.n_atoms.size)

    @cached_property
    def offsets(self) -> np.ndarray:
        """First atom of each conformer, and the number of all atoms: [M + 1]."""
        return np.concatenate([[0], np.cumsum(self.n_atoms)])

    def take(self, rows: np.ndarray) -> Dataset:
        """The conformers ``rows`` (indices), in that order."""
        atoms = rows_of(self.offsets, rows)
        return Dataset(
            **{
                field.name: getattr(self, field.name)[atoms if field.name in PER_ATOM else rows]
                for field in fields(self)
            }
        )


def rows_of(offsets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Indices of all members of the given groups, where group k is offsets[k]:offsets[k+1]."""
    counts = offsets[groups + 1] - offsets[groups]
    starts = np.repeat(offsets[groups] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return starts + np.arange(counts.sum())


def no_modes(atoms: int) -> np.ndarray:
    """The `soft_modes` of conformers that have none."""
    return np.zeros((atoms, 0, 3), dtype=np.float16)


def join(parts: Sequence[Part]) -> tuple[Dataset, np.ndarray]:
    """One data set of what the readers return, and the split of its conformers [M].

    A molecule is the same in two files that give it the same number, or the same name.
    """
    if not parts:
        raise ValueError("no data file was given")
    parts, whole = padded_modes(parts), {}
    for name in dict.fromkeys(name for part in parts for name in part):
        # a reader may leave out what is optional
        arrays = [part.get(name, np.full(part["numbers"].size, np.nan)) for part in parts]
        if any(array.dtype.kind == "U" for array in arrays):
            arrays = [array.astype(str) for array in arrays]
        whole[name] = np.concatenate(arrays)
    split = whole.pop("split")
    if whole["molecule"].dtype.kind == "U":
        whole["molecule"] = np.unique(whole["molecule"], return_inverse=True)[1]
    for name, array in whole.items():
        if array.dtype.kind != "U":
            whole[name] = array.astype(TYPES.get(name, np.int64))
    return Dataset(**whole), split


def padded_modes(parts: Sequence[Part]) -> list[Part]:
    """The same with as many `soft_modes` in each as the one with most has."""
    modes = [part.get("soft_modes", no_modes(part["numbers"].size)) for part in parts]
    most = max(array.shape[1] for array in modes)
    return [
        {**part, "soft_modes": np.pad(array, ((0, 0), (0, most - array.shape[1]), (0, 0)))}
        for part, array in zip(parts, modes, strict=True)
    ]


def read_npz(path: str | Path) -> Part:
    """Read one npz corpus.

    Its arrays: n_atoms, charge, energy, molecule, source [M] and numbers, positions, forces [A];
    if present, multiplicity [M] (else the lowest possible), split [M] (else undecided), charges
    [A], the labels of partial charges, given_charges [A], partial charges that the network is told,
    and soft_modes [A, K, 3] (see `Dataset`).

    Raises:
        ValueError: it is no such file; an array is missing, has a wrong shape or holds a value that
            is not finite; a conformer is in a state that cannot exist.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in (*NEEDED, *FURTHER) if name in data}
    except (EOFError, BadZipFile, TypeError) as error:
        raise ValueError(f"{path} is no npz file, or not all of one: {error}") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}")
    ours = {theirs: name for name, theirs in IN_FILES.items()}
    part = {ours.get(name, name): array for name, array in arrays.items()}
    for name in ("molecule", "source"):
        if part[name].dtype.kind == "S":
            part[name] = np.char.decode(part[name])
    check_arrays(part, path)
    part.setdefault("split", np.full(part["n_atoms"].size, UNDECIDED))
    if part["n_atoms"].size:
        part.setdefault("multiplicity", 1 + electrons(part) % 2)
        check_multiplicity(part, path)
    part.setdefault("multiplicity", np.ones(0, dtype=np.int64))
    part.setdefault("partial_charges", np.full(part["numbers"].size, np.nan, dtype=np.float32))
    part["split"] = part["split"].astype(np.int64)
    return part


def read_corpus(paths: Sequence[str | Path]) -> tuple[Dataset, Dataset]:
    """Read npz corpora into (training, validation) sets by their ``split`` array.

    `nnpcalc.train.readers.read_dataset` reads other formats too and splits what has no split.

    Raises:
        ValueError: see `read_npz`.
    """
    dataset, split = join([read_npz(path) for path in paths])
    return dataset.take(np.flatnonzero(split == 0)), dataset.take(np.flatnonzero(split == 1))


@dataclass(frozen=True)
class Baseline:
    """What a least-squares fit of total energies to composition and state gives.

    Attributes:
        atomic_energies: eV by atomic number.
        state: coefficients of Q, Q^2 and the number of unpaired electrons, eV; 0 where the data
            set holds too few states to tell.
    """

    atomic_energies: dict[int, float]
    state: tuple[float, float, float]

    def of(self, dataset: Dataset) -> np.ndarray:
        """The baseline of every conformer [M], eV."""
        table = np.zeros(119)
        table[list(self.atomic_energies)] = list(self.atomic_energies.values())
        atoms = np.add.reduceat(table[dataset.numbers], dataset.offsets[:-1])
        return atoms + states_of(dataset) @ np.array(self.state)


def states_of(dataset: Dataset) -> np.ndarray:
    """Q, Q^2 and the number of unpaired electrons of every conformer [M, 3], float64."""
    columns = [dataset.charge, dataset.charge**2, dataset.multiplicity - 1]
    return np.stack(columns, axis=1).astype(np.float64)


def fit_baseline(dataset: Dataset, trim: float = 0.02, state: bool = True) -> Baseline:
    """Energies per element and per state by least squares on the total energies.

    Fitted twice: the second time without the fraction ``trim`` of conformers that lie farthest
    from the first fit per atom, so that strained outliers do not shift an element. Without
    ``state``, elements alone.
    """
    elements = np.unique(dataset.numbers)
    system = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    counts = np.zeros((len(dataset), elements.size))
    np.add.at(counts, (system, np.searchsorted(elements, dataset.numbers)), 1.0)
    design = np.concatenate([counts, states_of(dataset) * float(state)], axis=1)
    keep = np.ones(len(dataset), dtype=bool)
    for _ in range(2):
        # The minimum-norm solution gives a coefficient that the data do not determine no weight.
        fit, *_ = np.linalg.lstsq(design[keep], dataset.energy[keep], rcond=1e-10)
        residual = np.abs(dataset.energy - design @ fit) / dataset.n_atoms
        keep = residual <= np.quantile(residual, 1.0 - trim)
        lost = design.any(axis=0) & ~design[keep].any(axis=0)  # elements and states only in those
        keep |= design[:, lost].any(axis=1)
    energies = {int(z): float(e) for z, e in zip(elements, fit, strict=False)}
    return Baseline(energies, (float(fit[-3]), float(fit[-2]), float(fit[-1])))


@dataclass(frozen=True)
class PairIndex:
    """All pairs within a cutoff of every conformer of a data set, as indices within it.

    Attributes:
        offsets: first pair of each conformer [M + 1].
        i, j: receiver and sender, counted within the conformer [P], uint16, sorted by receiver.
    """

    offsets: np.ndarray
    i: np.ndarray
    j: np.ndarray


def index_pairs(dataset: Dataset, cutoff: float, chunk: int = 2000) -> PairIndex:
    """Find the pairs once; training then only gathers them."""
    offsets = dataset.offsets
    counts: list[np.ndarray] = []
    receivers: list[np.ndarray] = []
    senders: list[np.ndarray] = []
    for start in range(0, len(dataset), chunk):
        stop = min(start + chunk, len(dataset))
        atoms = slice(offsets[start], offsets[stop])
        n_atoms = dataset.n_atoms[start:stop]
        first = np.repeat(offsets[start:stop] - offsets[start], n_atoms)
        system = torch.from_numpy(np.repeat(np.arange(stop - start), n_atoms))
        n = stop - start
        batch = AtomsBatch(
            numbers=torch.from_numpy(dataset.numbers[atoms].astype(np.int64)),
            positions=torch.from_numpy(dataset.positions[atoms]),
            cell=torch.zeros(n, 3, 3),
            pbc=torch.zeros(n, 3, dtype=torch.bool),
            system=system,
            charge=torch.zeros(n, dtype=torch.int64),
            multiplicity=torch.ones(n, dtype=torch.int64),
        )
        try:
            i, j = neighbor_list(batch, cutoff).pairs.numpy()
        except ValueError as error:
            raise ValueError(f"{error}; its system 0 is conformer {start} of the data") from error
        counts.append(np.bincount(system.numpy()[i], minlength=n))
        receivers.append((i - first[i]).astype(np.uint16))
        senders.append((j - first[j]).astype(np.uint16))
    return PairIndex(
        np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
        np.concatenate(receivers),
        np.concatenate(senders),
    )


@dataclass(frozen=True)
class Batch:
    """One training batch as tensors: inputs of the potential, and labels."""

    numbers: Tensor
    positions: Tensor
    system: Tensor
    pairs: Tensor
    charge: Tensor
    multiplicity: Tensor
    n_atoms: Tensor
    energy: Tensor
    forces: Tensor
    partial_charges: Tensor
    given_charges: Tensor
    soft_modes: Tensor
    rows: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(dataset: Dataset, pairs: PairIndex, rows: np.ndarray) -> Batch:
    """The batch of the conformers ``rows``."""
    offsets = dataset.offsets
    atoms = rows_of(offsets, rows)
    n_atoms = dataset.n_atoms[rows]
    first = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
    members = rows_of(pairs.offsets, rows)
    shift = np.repeat(first, pairs.offsets[rows + 1] - pairs.offsets[rows])
    index = np.stack([pairs.i[members] + shift, pairs.j[members] + shift])
    return Batch(
        numbers=torch.from_numpy(dataset.numbers[atoms].astype(np.int64)),
        positions=torch.from_numpy(dataset.positions[atoms]),
        system=torch.from_numpy(np.repeat(np.arange(rows.size), n_atoms)),
        pairs=torch.from_numpy(index),
        charge=torch.from_numpy(dataset.charge[rows]),
        multiplicity=torch.from_numpy(dataset.multiplicity[rows]),
        n_atoms=torch.from_numpy(n_atoms),
        energy=torch.from_numpy(dataset.energy[rows]),
        forces=torch.from_numpy(dataset.forces[atoms]),
        partial_charges=torch.from_numpy(dataset.partial_charges[atoms]),
        given_charges=torch.from_numpy(dataset.given_charges[atoms]),
        soft_modes=torch.from_numpy(dataset.soft_modes[atoms]),
        rows=torch.from_numpy(rows),
    )


def batches(sizes: np.ndarray, order: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Cut ``order`` into consecutive groups of at most ``limit`` in size (at least one each).

    Args:
        sizes: atoms, or pairs, of every conformer of the data set [M].
        order: indices of conformers.
        limit: largest sum of the sizes of a group.
    """
    start, total = 0, 0
    for k, row in enumerate(order):
        if k > start and total + sizes[row] > limit:
            yield order[start:k]
            start, total = k, 0
        total += int(sizes[row])
    if start < order.size:
        yield order[start:]
