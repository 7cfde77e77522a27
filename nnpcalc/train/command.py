"""``nnpcalc train`` and ``nnpcalc evaluate``: from a configuration to a model and its report."""

from __future__ import annotations

import json
import platform
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnpcalc.evaluation import ExtrapolationWarning
from nnpcalc.potential import Potential
from nnpcalc.train.build import accelerated, baseline_of, check_states
from nnpcalc.train.config import Config, read_config
from nnpcalc.train.data import UNDECIDED, Dataset, fit_baseline, index_pairs
from nnpcalc.train.predict import Errors, evaluate
from nnpcalc.train.processes import join, leave
from nnpcalc.train.readers import read_files
from nnpcalc.train.report import Row, format_table, plot_parity, plot_training, table
from nnpcalc.train.trainer import Trainer
from nnpcalc.weights import load_potential, make_golden, save_potential

SPLITS = ("training", "validation", "test", "all")


def train(
    config: str | Path,
    *,
    data: str | Path = ".",
    output: str | Path = "runs",
    device: str = "cpu",
    threads: int | None = None,
    minutes: float | None = None,
    initial: str | None = None,
) -> Path:
    """Train the model of a TOML file and write it as a model directory.

    A run that was stopped or killed goes on from its last checkpoint when called again. Started by
    torchrun, the processes share the work (`nnpcalc.train.processes`).

    Args:
        config: TOML file; see examples/training.
        data: directory that relative file names in it are looked up in.
        output: the run lives in ``output/<name>``; the finished model in its ``model/<name>``.
        device: "cpu" or "cuda".
        threads: CPU threads; torch's own choice by default.
        minutes: stop, with a checkpoint, after this long.
        initial: name or path of a model to start from, instead of what the file says.

    Returns:
        The run's directory.
    """
    settings = read_config(config)
    files = tuple(str(Path(data) / name) for name in settings.data.files)
    settings = replace(settings, data=replace(settings.data, files=files))
    if initial is not None:
        training = replace(settings.training, initial=initial, initial_average=())
        settings = replace(settings, training=training)
    _use_threads(threads)
    directory = Path(output) / settings.name
    processes, device = join(device)

    def report(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, flush=True)

    done = False
    try:
        trainer = Trainer(settings, directory, device, processes)
        until = None if minutes is None else time.time() + 60.0 * minutes
        trainer.run(report, until, bar=sys.stderr.isatty())
        done = True
    finally:
        leave(together=done)
    if trainer.log and processes.rank == 0:
        finish(trainer, report)
    return directory


def evaluate_model(
    model: str | Path,
    files: list[str | Path],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    split: str | None = None,
    labels: dict[str, str] | None = None,
    plots: str | Path | None = None,
    json_file: str | Path | None = None,
) -> list[Row]:
    """Errors of a model on labelled files, by charge, multiplicity, source, size and element.

    Args:
        model: name or path.
        files: what `nnpcalc.train.readers.read_files` takes.
        device, dtype: where and how to compute.
        threads: CPU threads; torch's own choice by default.
        split: "training", "validation", "test" or "all"; by default the validation conformers, or
            all where no file has a split.
        labels: names of the labels in the files.
        plots: directory for parity.png.
        json_file: file for the table.

    Raises:
        ValueError: the chosen split is empty, or the model does not know an element of it or cannot
            tell its states.

    Warns:
        ExtrapolationWarning: of charges and multiplicities that the model's card does not list.
    """
    _use_threads(threads)
    dataset, split = _chosen(files, labels or {}, split)
    potential = load_potential(model, device=device, dtype=dtype).requires_grad_(False)
    unknown = sorted(set(np.unique(dataset.numbers).tolist()) - set(potential.elements))
    if unknown:
        raise ValueError(f"{model} does not know the atomic numbers {unknown} of the data")
    if isinstance(potential, Potential):
        check_states(potential.core, dataset)
    card: Any = potential.card
    _warn_about_states(model, card or {}, dataset)
    pairs = index_pairs(dataset, potential.cutoff)
    fast = accelerated(potential, n_knots=512, frozen=True)
    errors = evaluate(fast, dataset, pairs, torch.device(device))
    rows = table(dataset, errors)
    if plots is not None:
        Path(plots).mkdir(parents=True, exist_ok=True)
        plot_parity(dataset, errors, _baseline(potential, dataset), Path(plots) / "parity.png")
    if json_file is not None:
        content = {
            "model": str(model),
            "files": [str(file) for file in files],
            "split": split,
            "units": "energy meV/atom, forces meV/Å, charges 0.001 e",
            "rows": [asdict(row) for row in rows],
        }
        Path(json_file).write_text(json.dumps(content, indent=1) + "\n")
    return rows


def _use_threads(count: int | None) -> None:
    if count is None:
        return
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    torch.set_num_threads(count)


def _warn_about_states(model: str | Path, card: dict[str, Any], dataset: Dataset) -> None:
    """Say which conformers are in states that the model's card does not list."""
    for name, listed, values in (
        ("charge", "charges", dataset.charge),
        ("multiplicity", "multiplicities", dataset.multiplicity),
    ):
        foreign = sorted(set(values.tolist()) - set(card.get(listed) or values.tolist()))
        if foreign:
            warnings.warn(
                f"{np.isin(values, foreign).sum()} of {len(dataset)} conformers have {name} "
                f"{', '.join(map(str, foreign))}, outside of what {model} was trained on, {name} "
                f"{', '.join(map(str, sorted(card[listed])))}",
                ExtrapolationWarning,
                stacklevel=3,
            )


def _chosen(
    files: list[str | Path], labels: dict[str, str], split: str | None
) -> tuple[Dataset, str]:
    """The conformers of a split, and its name."""
    dataset, number = read_files(files, labels)
    if split is None:
        split = "all" if (number == UNDECIDED).all() else "validation"
    if split not in SPLITS:
        raise ValueError(f"the split must be one of {', '.join(SPLITS)}, not {split!r}")
    rows = np.arange(len(dataset))
    if split != "all":
        rows = np.flatnonzero(np.minimum(number, 2) == SPLITS.index(split))
    if not rows.size:
        raise ValueError(f"{', '.join(map(str, files))}: no {split} conformers")
    return dataset.take(rows), split


def _baseline(potential: Any, dataset: Dataset) -> np.ndarray:
    """What a plot subtracts from energies [M], eV; it need not be exact."""
    found = baseline_of(potential) if isinstance(potential, Potential) else None
    return (found if found and found.atomic_energies else fit_baseline(dataset)).of(dataset)


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
    _plots(trainer, errors, report)
    target = trainer.directory / "model" / trainer.config.name
    save_potential(potential, target, json.loads(json.dumps(_card(trainer, potential, rows))))
    report(f"wrote {target}")


def _plots(trainer: Trainer, errors: Errors, report: Any) -> None:
    try:
        if trainer.step:
            plot_training(trainer.directory / "log.csv", trainer.directory / "training.png")
        baseline = trainer.baseline.of(trainer.validation)
        plot_parity(trainer.validation, errors, baseline, trainer.directory / "parity.png")
    except ImportError as error:  # the model is worth more than its plots
        report(str(error))


def _card(trainer: Trainer, potential: Potential, rows: list[Row]) -> dict[str, Any]:
    config: Config = trainer.config
    return {
        **trainer.card(),
        "training": {
            **asdict(config.training),
            "conformers": len(trainer.train),
            "molecules": int(np.unique(trainer.train.molecule).size),
            "validation_conformers": len(trainer.validation),
            "steps": trainer.step,
            "epochs_done": trainer.epoch,
            "hardware": f"{platform.machine()} {trainer.device.type}, "
            f"{torch.get_num_threads()} threads, {trainer.processes.size} processes",
            "torch": torch.__version__,
        },
        "accuracy": [asdict(row) for row in rows],
        "golden": make_golden(potential, golden_structures(trainer)),
    }


def golden_structures(trainer: Trainer) -> list[Any]:
    """One small validation conformer of every total charge, multiplicity and source."""
    from ase import Atoms

    dataset = trainer.validation
    chosen: dict[tuple[int, int, str], int] = {}
    tiny = dataset.n_atoms < 4  # these tell less: only where there is nothing else
    for row in np.lexsort((dataset.n_atoms, tiny)):
        key = (int(dataset.charge[row]), int(dataset.multiplicity[row]), str(dataset.source[row]))
        chosen.setdefault(key, int(row))
    structures = []
    for row in sorted(chosen.values())[:16]:
        atoms = slice(dataset.offsets[row], dataset.offsets[row + 1])
        info = {"charge": int(dataset.charge[row]), "spin": int(dataset.multiplicity[row])}
        structure = Atoms(dataset.numbers[atoms], positions=dataset.positions[atoms], info=info)
        if np.isfinite(dataset.given_charges[atoms]).all():
            structure.arrays["partial_charges"] = dataset.given_charges[atoms].astype(np.float64)
        structures.append(structure)
    return structures
