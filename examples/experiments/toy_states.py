"""What it takes to tell charges, or spins, apart: small TensorNets on the toy sets A and B.

    python toy_states.py A --data toy-a --output toy-a-table
    python toy_states.py B --data toy-b --output toy-b-table

``--data`` is what ``examples/datasets/toy_sets.py`` wrote. Every variant of `state_variants` is
trained from several seeds on the same geometries; the table stands below the smallest error that
a model without knowledge of the state can have. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from state_variants import (
    Settings,
    choose,
    compare,
    floor,
    markdown,
    mean_errors,
    save,
    thin,
    variants,
)

from nnpcalc.train.data import read_corpus

ATTRIBUTE = {"A": "charge", "B": "unpaired_electrons"}
EPOCHS = {"A": 2, "B": 5}  # about 300 steps of either
COLUMNS = {"energy_mae": "energy MAE, eV", "force_mae": "force MAE, eV/Å"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("set", choices=sorted(ATTRIBUTE))
    parser.add_argument("--data", required=True, help="directory of the npz files")
    parser.add_argument("--output", required=True, help="directory of runs and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", help="rows of the table; all by default")
    parser.add_argument("--epochs", type=int, help="2 of A, 5 of B by default")
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--channels", type=int, default=Settings.channels)
    parser.add_argument("--training", type=int, default=350, help="geometries of each molecule")
    parser.add_argument("--validation", type=int, default=100, help="geometries of each molecule")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)

    output = Path(given.output)
    corpus = output / f"corpus-{given.training}-{given.validation}.npz"
    thin(sorted(Path(given.data).glob("*.npz")), corpus, given.training, given.validation)
    validation = read_corpus([corpus])[1]
    floors = dict(zip(COLUMNS, floor(validation), strict=True))
    settings = replace(
        Settings(),
        epochs=given.epochs or EPOCHS[given.set],
        layers=given.layers,
        channels=given.channels,
    )
    chosen = choose(variants(ATTRIBUTE[given.set]), given.variants)
    results = compare(chosen, corpus, settings, given.seeds, output, mean_errors)
    title = (
        f"Toy set {given.set}: {results[0]['steps']} steps of {settings.channels} channels and "
        f"{settings.layers} layer(s), {len(given.seeds)} seeds, {len(validation)} validation labels"
    )
    save(output, title, markdown(results, COLUMNS, floors), results, floors)


if __name__ == "__main__":
    main()
