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
from nnpcalc.train.data import index_pairs, read_corpus
from nnpcalc.train.report import Row, format_table, plot_parity, plot_training, table
from nnpcalc.train.trainer import Trainer, accelerated, evaluate
from nnpcalc.weights import load_potential, make_golden, save_potential


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


def evaluate_model(
    model: str | Path,
    files: list[str | Path],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    training_split: bool = False,
) -> list[Row]:
    """Errors of a model on npz corpora, by charge, multiplicity, source, size and element.

    Args:
        model: name or path.
        files: corpora as `nnpcalc.train.data.read_corpus` takes them.
        device, dtype: where and how to compute.
        threads: CPU threads; torch's own choice by default.
        training_split: use the conformers marked for training, not those for validation.

    Raises:
        ValueError: the chosen split is empty.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = read_corpus(files)[0 if training_split else 1]
    if not len(dataset):
        raise ValueError(f"{', '.join(map(str, files))}: the chosen split holds no conformers")
    potential = load_potential(model, device=device, dtype=dtype).requires_grad_(False)
    pairs = index_pairs(dataset, potential.cutoff)
    fast = accelerated(potential, n_knots=512, frozen=True)
    return table(dataset, evaluate(fast, dataset, pairs, torch.device(device)))


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
    plot_parity(dataset, errors, trainer.baseline.of(dataset), trainer.directory / "parity.png")
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
