"""Singlet-triplet gaps of unseen carbenes and nitrenes, with and without the spin.

    python carbenes.py --data carbenes --output carbenes-table

``--data`` is what ``examples/datasets/carbenes.py`` wrote: both states at every geometry, and
validation molecules that training does not see. Beside the mean absolute errors of energies and
forces, the table has that of the gap E(triplet) - E(singlet) at one geometry, and how often its
sign, the ground state, is right. The gap of a state-blind model is 0, and no ground state right.
A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from state_variants import (
    Settings,
    choose,
    compare,
    floor,
    gaps,
    markdown,
    mean_errors,
    save,
    thin,
    variants,
)

from nnpcalc.train.data import Dataset, read_corpus
from nnpcalc.train.predict import Errors

NO_GAP = 1e-3  # eV; a smaller one is rounding, and says nothing of the ground state
COLUMNS = {
    "gap_mae": "gap MAE, eV",
    "sign": "right ground state",
    "energy_mae": "energy MAE, eV",
    "force_mae": "force MAE, eV/Å",
}
ROWS = ("state-blind", "lambda-0.1", "lambda-1.0", "lambda-learnable", "state-embedding")


def measure(dataset: Dataset, errors: Errors) -> dict[str, float]:
    """Errors of energies, forces and gaps, and the share of gaps with the right sign."""
    label = gaps(dataset, dataset.energy)
    predicted = label + gaps(dataset, errors.energy)
    return {
        **mean_errors(dataset, errors),
        "gap_mae": float(np.abs(predicted - label).mean()),
        "sign": float(((predicted * label > 0.0) & (np.abs(predicted) > NO_GAP)).mean()),
    }


def floors_of(dataset: Dataset) -> dict[str, float]:
    """What a state-blind model can reach at best."""
    energy, force = floor(dataset)
    gap = float(np.abs(gaps(dataset, dataset.energy)).mean())
    return {"gap_mae": gap, "energy_mae": energy, "force_mae": force}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", required=True, help="directory of the npz files")
    parser.add_argument("--output", required=True, help="directory of runs and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=ROWS, help="rows of the table")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--optimizer", default=Settings.optimizer, choices=("adamw", "muon"))
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--channels", type=int, default=Settings.channels)
    parser.add_argument("--training", type=int, default=100, help="geometries of each molecule")
    parser.add_argument("--validation", type=int, default=100, help="geometries of each molecule")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)

    output = Path(given.output)
    corpus = output / f"corpus-{given.training}-{given.validation}.npz"
    thin(sorted(Path(given.data).glob("*.npz")), corpus, given.training, given.validation)
    training, validation = read_corpus([corpus])
    floors = floors_of(validation)
    settings = replace(
        Settings(), epochs=given.epochs, layers=given.layers, channels=given.channels,
        optimizer=given.optimizer,
    )  # fmt: skip
    chosen = choose(variants("unpaired_electrons"), given.variants)
    results = compare(chosen, corpus, settings, given.seeds, output, measure)
    title = (
        f"Carbenes and nitrenes: {results[0]['steps']} steps of {settings.channels} channels and "
        f"{settings.layers} layer(s), {len(given.seeds)} seeds; {len(training)} labels of "
        f"{np.unique(training.molecule).size} molecules, validated on {len(validation)} of "
        f"{np.unique(validation.molecule).size} others"
    )
    save(output, title, markdown(results, COLUMNS, floors), results, floors)


if __name__ == "__main__":
    main()
