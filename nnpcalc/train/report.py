"""How good a potential is on a data set: tables by charge, source, size and element, and plots."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnpcalc.state import element_symbol
from nnpcalc.train.data import Dataset
from nnpcalc.train.predict import Errors


@dataclass(frozen=True)
class Row:
    """Errors of one group of conformers.

    Energies per atom in meV, force components in meV/Å, partial charges in 0.001 e (None without
    labels or without charges of the model).
    """

    group: str
    conformers: int
    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float
    charge_mae: float | None = None


def table(dataset: Dataset, errors: Errors) -> list[Row]:
    """Errors overall and by total charge, multiplicity, source, size and element.

    For an element, the force errors are those of its atoms and the energy errors those of the
    conformers that contain it.
    """
    system = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    per_atom = errors.energy / dataset.n_atoms
    size = np.digitize(dataset.n_atoms, (11, 21, 31))
    names = ("up to 10 atoms", "11-20 atoms", "21-30 atoms", "over 30 atoms")

    def row(group: str, conformers: np.ndarray, atoms: np.ndarray) -> Row:
        energy, force = per_atom[conformers], errors.forces[atoms]
        charge = None
        if errors.charges is not None and np.isfinite(errors.charges[atoms]).any():
            charge = 1e3 * float(np.nanmean(np.abs(errors.charges[atoms])))
        return Row(
            group,
            int(conformers.sum()),
            1e3 * float(np.abs(energy).mean()),
            1e3 * float(np.sqrt((energy**2).mean())),
            1e3 * float(np.abs(force).mean()),
            1e3 * float(np.sqrt((force**2).mean())),
            charge,
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
        result.append(row(f"element {element_symbol(int(z))}", contains, atoms))
    return result


def format_table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    width = max(16, *(len(r.group) + 2 for r in rows))
    charges = any(r.charge_mae is not None for r in rows)
    head = f"{'':<{width}}{'conformers':>11} {'E MAE':>8} {'E RMSE':>8} {'F MAE':>8} {'F RMSE':>8}"
    units = f"{'':<{width}}{'':>11}{'meV/atom':>18}{'meV/Å':>18}"
    lines = [
        f"{r.group:<{width}}{r.conformers:>11d} {r.energy_mae:>8.2f} {r.energy_rmse:>8.2f}"
        f" {r.force_mae:>8.1f} {r.force_rmse:>8.1f}"
        + ("" if r.charge_mae is None else f" {r.charge_mae:>8.1f}")
        for r in rows
    ]
    if charges:
        head, units = head + f"{'q MAE':>9}", units + f"{'0.001 e':>9}"
    return "\n".join([head, units, *lines])


def plot_training(log: Path, image: Path) -> None:
    """Validation errors and training loss over the optimiser steps of a ``log.csv``, as PNG."""
    plt = _pyplot()
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, (top, left) = plt.subplots(2, 1, figsize=(7, 7), layout="constrained", sharex=True)
    losses = [float(r.get("train_loss") or "nan") for r in rows]
    top.semilogy(steps, losses, ".-", color="C2")
    top.set_ylabel("training loss, mean of an epoch")
    rate = top.twinx()
    rate.plot(steps, [float(r["learning_rate"]) for r in rows], "--", color="C3")
    rate.set_ylabel("learning rate", color="C3")
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
    plt = _pyplot()
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
    for axes, start in ((left, float(label[0])), (right, 0.0)):
        axes.axline((start, start), slope=1.0, color="black", lw=0.5)
    figure.savefig(image, dpi=120)
    plt.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'nnpcalc[train]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
