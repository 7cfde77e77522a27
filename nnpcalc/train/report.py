"""How good a potential is on a data set: tables by charge, source, size and element, and plots."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnpcalc.train.data import Dataset


@dataclass(frozen=True)
class Errors:
    """Predicted minus labelled, in the order of the data set: energy [M] eV, forces [A, 3] eV/Å."""

    energy: np.ndarray
    forces: np.ndarray


@dataclass(frozen=True)
class Row:
    """Errors of one group of conformers; energies per atom in meV, force components in meV/Å."""

    group: str
    conformers: int
    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float


def table(dataset: Dataset, errors: Errors) -> list[Row]:
    """Errors overall and by total charge, multiplicity, source, size and element.

    For an element, the force errors are those of its atoms and the energy errors those of the
    conformers that contain it.
    """
    system = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    per_atom = errors.energy / dataset.n_atoms
    size = np.digitize(dataset.n_atoms, (11, 21, 31))
    names = ("2-10 atoms", "11-20 atoms", "21-30 atoms", "over 30 atoms")

    def row(group: str, conformers: np.ndarray, atoms: np.ndarray) -> Row:
        energy, force = per_atom[conformers], errors.forces[atoms]
        return Row(
            group,
            int(conformers.sum()),
            1e3 * float(np.abs(energy).mean()),
            1e3 * float(np.sqrt((energy**2).mean())),
            1e3 * float(np.abs(force).mean()),
            1e3 * float(np.sqrt((force**2).mean())),
        )

    def rows(values: np.ndarray, title: Callable[[Any], str]) -> Iterable[Row]:
        for value in np.unique(values):
            chosen = values == value
            yield row(title(value), chosen, chosen[system])

    everything = np.ones(len(dataset), dtype=bool)
    result = [row("all", everything, everything[system])]
    result += rows(dataset.charge, lambda q: f"charge {q:+d}")
    if np.unique(dataset.multiplicity).size > 1:
        result += rows(dataset.multiplicity, lambda m: f"multiplicity {m}")
    result += rows(dataset.source, lambda s: f"source {s}")
    result += rows(size, lambda k: names[k])
    for z in np.unique(dataset.numbers):
        atoms = dataset.numbers == z
        contains = np.zeros(len(dataset), dtype=bool)
        contains[system[atoms]] = True
        result.append(row(f"element {z}", contains, atoms))
    return result


def format_table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    head = f"{'':<16}{'conformers':>11}{'E MAE':>9}{'E RMSE':>9}{'F MAE':>9}{'F RMSE':>9}"
    units = f"{'':<16}{'':>11}{'meV/atom':>18}{'meV/Å':>18}"
    lines = [
        f"{r.group:<16}{r.conformers:>11d}{r.energy_mae:>9.2f}{r.energy_rmse:>9.2f}"
        f"{r.force_mae:>9.1f}{r.force_rmse:>9.1f}"
        for r in rows
    ]
    return "\n".join([head, units, *lines])


def plot_training(log: Path, image: Path) -> None:
    """Validation errors and learning rate over the optimiser steps of a ``log.csv``, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    left.semilogy(steps, [float(r["force_mae_meV_per_A"]) for r in rows], "o-", color="C0")
    left.set_xlabel("optimiser step")
    left.set_ylabel("validation force MAE, meV/Å", color="C0")
    right = left.twinx()
    right.semilogy(steps, [float(r["energy_mae_meV_per_atom"]) for r in rows], "s-", color="C1")
    right.set_ylabel("validation energy MAE, meV/atom", color="C1")
    figure.savefig(image, dpi=120)
    plt.close(figure)


def plot_parity(dataset: Dataset, errors: Errors, baseline: np.ndarray, image: Path) -> None:
    """Predicted against labelled interaction energies (total minus atomic) and forces, as PNG.

    Args:
        dataset: the labels.
        errors: of the potential on it.
        baseline: summed atomic energies [M], eV, subtracted from both axes.
        image: the file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    label = (dataset.energy - baseline) / dataset.n_atoms
    for charge in np.unique(dataset.charge):
        chosen = dataset.charge == charge
        predicted = label[chosen] + errors.energy[chosen] / dataset.n_atoms[chosen]
        left.plot(label[chosen], predicted, ".", ms=2, label=f"{charge:+d}")
    left.legend(title="charge", markerscale=5)
    left.set_xlabel("label, eV/atom")
    left.set_ylabel("model, eV/atom")
    left.set_title("energy minus atomic energies")
    force = dataset.forces.ravel()
    right.hexbin(force, force + errors.forces.ravel(), bins="log", gridsize=120, mincnt=1)
    right.set_xlabel("label, eV/Å")
    right.set_ylabel("model, eV/Å")
    right.set_title("force components")
    for axes in (left, right):
        axes.axline((0.0, 0.0), slope=1.0, color="black", lw=0.5)
    figure.savefig(image, dpi=120)
    plt.close(figure)
