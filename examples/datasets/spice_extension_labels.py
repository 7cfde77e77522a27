"""The teacher, a TorchScript ensemble, and which of its labels are kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

MAX_FORCE = 20.0  # eV/Å, the largest component
MAX_SPREAD = 0.5  # eV/Å, RMS over a conformer of the ensemble's standard deviation
CLOSEST = 0.55  # Å
BATCH_ATOMS = 700  # padded atoms of one call of the teacher
ELEMENTS = frozenset({1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53})  # of the corpus; the teacher's too


@dataclass(frozen=True)
class Structure:
    """What is to be labelled: a conformer of line ``molecule`` of molecules.txt."""

    molecule: int
    numbers: np.ndarray
    positions: np.ndarray
    charge: int


class Teacher:
    """The TorchScript ensemble: padded coordinates in, means and standard deviations out."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        if not path.is_file():
            raise ValueError(f"there is no teacher {path}: see README.md for where to get it")
        self.device = torch.device(device)
        self.model = torch.jit.load(str(path), map_location=self.device)

    def __call__(self, structures: Sequence[Structure]) -> list[dict[str, np.ndarray]]:
        """Labels of each structure: energy, energy_std, forces and forces_std [N, 3], charges [N].

        Energies are in eV, lengths in Å, charges in e.
        """
        longest = max(structure.numbers.size for structure in structures)
        coord = torch.zeros(len(structures), longest, 3)
        numbers = torch.zeros(len(structures), longest, dtype=torch.int64)
        for row, structure in enumerate(structures):
            n = structure.numbers.size
            coord[row, :n] = torch.from_numpy(structure.positions)
            numbers[row, :n] = torch.from_numpy(structure.numbers)
        charge = torch.tensor([float(structure.charge) for structure in structures])
        inputs = {"coord": coord, "numbers": numbers, "charge": charge}
        output = self.model({name: value.to(self.device) for name, value in inputs.items()})
        labels = {name: value.detach().cpu().numpy() for name, value in output.items()}
        names = ("energy", "energy_std", "forces", "forces_std", "charges")
        return [
            {
                name: labels[name][row][: structure.numbers.size]
                if labels[name].ndim > 1
                else labels[name][row]
                for name in names
            }
            for row, structure in enumerate(structures)
        ]


def closest_pair(positions: np.ndarray) -> float:
    """The shortest distance in Å; infinite for one atom."""
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


class Progress:
    """A line now and then: what is done of what, and how fast."""

    def __init__(self, name: str, total: int, every: float = 30.0) -> None:
        self.name, self.total, self.every = name, total, every
        self.began = self.last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            rate = done / (now - self.began)
            print(f"{self.name}: {done} of {self.total}, {rate:.1f}/s", flush=True)


def label(
    structures: list[Structure], teacher: Teacher, source: int, rejected: Counter[str]
) -> dict[str, np.ndarray]:
    """The arrays of one shard, without what is too close, too strained or uncertain."""
    kept = [s for s in structures if closest_pair(s.positions) >= CLOSEST]
    rejected["atoms too close"] += len(structures) - len(kept)
    order = sorted(range(len(kept)), key=lambda k: kept[k].numbers.size)
    labels: list[dict[str, np.ndarray]] = [{}] * len(kept)
    progress = Progress("labels", len(kept))
    while order:
        # The largest first, so that memory runs out at once or never.
        size = max(1, BATCH_ATOMS // kept[order[-1]].numbers.size)
        order, rows = order[:-size], order[-size:]
        for row, result in zip(rows, teacher([kept[k] for k in rows]), strict=True):
            labels[row] = result
        progress(len(kept) - len(order))
    good = []
    for row, result in enumerate(labels):
        spread = np.sqrt(np.mean(np.square(result["forces_std"], dtype=np.float64)))
        if not (np.isfinite(result["energy"]) and np.isfinite(result["forces"]).all()):
            rejected["label not finite"] += 1
        elif np.abs(result["forces"]).max() > MAX_FORCE:
            rejected["force too large"] += 1
        elif not spread <= MAX_SPREAD:
            rejected["ensemble disagrees"] += 1
        else:
            good.append((kept[row], result, spread))
    m = len(good)

    def of(values: Iterator, dtype: type) -> np.ndarray:
        return np.array(list(values), dtype=dtype)

    def joined(parts: list[np.ndarray], dtype: type, *shape: int) -> np.ndarray:
        return np.concatenate(parts).astype(dtype) if parts else np.zeros((0, *shape), dtype)

    return {
        "n_atoms": of((s.numbers.size for s, _, _ in good), np.int32),
        "charge": of((s.charge for s, _, _ in good), np.int8),
        "energy": of((r["energy"] for _, r, _ in good), np.float64),
        "energy_std": of((r["energy_std"] for _, r, _ in good), np.float32),
        "forces_std": of((spread for _, _, spread in good), np.float32),
        "molecule": of((s.molecule for s, _, _ in good), np.int32),
        "source": np.full(m, source, np.uint8),
        "split": np.zeros(m, np.uint8),
        "numbers": joined([s.numbers for s, _, _ in good], np.uint8),
        "positions": joined([s.positions for s, _, _ in good], np.float32, 3),
        "forces": joined([r["forces"] for _, r, _ in good], np.float16, 3),
        "charges": joined([r["charges"] for _, r, _ in good], np.float16),
    }
