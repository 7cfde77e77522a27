"""``nnpcalc train``: run or continue a training, then write the model directory and its report."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnpcalc.potential import Potential
from nnpcalc.train.config import read_config
from nnpcalc.train.report import format_table, plot_parity, plot_training, table
from nnpcalc.train.trainer import Trainer, evaluate
from nnpcalc.weights import make_golden, save_potential


def train(
    config: str | Path,
    *,
    data: str | Path = ".",
    output: str | Path = "runs",
    device: str = "cpu",
    threads: int | None = None,
    minutes: float | None = None,
) -> Path:
    """Train the model of a TOML file and write it as a model directory.

    A run that was stopped or killed goes on from its last checkpoint when called again.

    Args:
        config: TOML file; see examples/training.
        data: directory that relative file names in it are looked up in.
        output: the run lives in ``output/<name>``; the finished model in its ``model/<name>``.
        device: "cpu" or "cuda".
        threads: CPU threads; torch's own choice by default.
        minutes: stop, with a checkpoint, after this long.

    Returns:
        The run's directory.
    """
    settings = read_config(config)
    files = tuple(str(Path(data) / name) for name in settings.data.files)
    settings = replace(settings, data=replace(settings.data, files=files))
    if threads is not None:
        torch.set_num_threads(threads)
    directory = Path(output) / settings.name
    trainer = Trainer(settings, directory, device)

    def report(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, flush=True)

    trainer.run(report, None if minutes is None else time.time() + 60.0 * minutes)
    if trainer.log:
        finish(trainer, report)
    return directory


def best_potential(trainer: Trainer) -> Potential:
    """The potential with the averaged weights of the lowest validation loss."""
    content = torch.load(trainer.directory / "best.pt", map_location="cpu", weights_only=True)
    potential = trainer.potential
    potential.load_state_dict(content["state"])
    return potential


def finish(trainer: Trainer, report: Any = print) -> None:
    """Write the best model so far, its accuracy table and its plots into the run's directory."""
    potential = best_potential(trainer)
    dataset = trainer.validation
    errors = evaluate(trainer.fast, dataset, trainer.validation_pairs, trainer.device)
    rows = table(dataset, errors)
    report("validation of the best weights:\n" + format_table(rows))
    plot_training(trainer.directory / "log.csv", trainer.directory / "training.png")
    energies = np.zeros(119)
    energies[list(trainer.atomic_energies)] = list(trainer.atomic_energies.values())
    baseline = np.add.reduceat(energies[dataset.numbers], dataset.offsets[:-1])
    plot_parity(dataset, errors, baseline, trainer.directory / "parity.png")
    config = trainer.config
    training = asdict(config.training)
    card = {
        **trainer.config.card,
        "charges": sorted({int(q) for q in trainer.train.charge}),
        "multiplicities": sorted({int(m) for m in trainer.train.multiplicity}),
        "training": {
            **training,
            "conformers": len(trainer.train),
            "molecules": int(np.unique(trainer.train.molecule).size),
            "validation_conformers": len(dataset),
            "steps": trainer.step,
            "epochs_done": trainer.epoch,
            "hardware": f"{platform.machine()} {trainer.device.type}, "
            f"{torch.get_num_threads()} threads",
            "torch": torch.__version__,
        },
        "accuracy": [asdict(row) for row in rows],
        "golden": make_golden(potential, golden_structures(trainer)),
    }
    target = trainer.directory / "model" / config.name
    save_potential(potential, target, json.loads(json.dumps(card)))
    report(f"wrote {target}")


def golden_structures(trainer: Trainer) -> list[Any]:
    """One small validation conformer of every total charge and source, as ase.Atoms."""
    from ase import Atoms

    dataset = trainer.validation
    chosen: dict[tuple[int, int, int], int] = {}
    for row in np.argsort(dataset.n_atoms, kind="stable"):
        key = (int(dataset.charge[row]), int(dataset.multiplicity[row]), int(dataset.source[row]))
        if dataset.n_atoms[row] >= 4:
            chosen.setdefault(key, int(row))
    structures = []
    for row in sorted(chosen.values())[:16]:
        atoms = slice(dataset.offsets[row], dataset.offsets[row + 1])
        info = {"charge": int(dataset.charge[row]), "spin": int(dataset.multiplicity[row])}
        structures.append(
            Atoms(dataset.numbers[atoms], positions=dataset.positions[atoms], info=info)
        )
    return structures
