"""The eight architectures in the same small training run, compared on molecules none has seen.

    python eight_potentials.py CORPUS_DIR --out eight [--only painn schnet] [--minutes 60]

All train on the same conformers, drawn by whole molecules and of every charge, in the same batches
with the same loss and learning rate. ANI-2x, which knows neither charges nor elements beyond its
seven, gets the part of the draw that it can take; two columns hold the errors of all on this part.
AIMNet2 and PhysNet also learn partial charges and have the Coulomb energy of these, as published.
Sizes are the published ones, made narrower where that is an option.

A stopped run goes on where it was when called again; finished architectures are not trained again.
Writes OUT/table.md and OUT/results.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import earlier, is_made, sums

from nnpcalc.train import Config, Trainer
from nnpcalc.train.checkpoint import averaged, fingerprint
from nnpcalc.train.config import DataConfig, ModelConfig, TrainingConfig
from nnpcalc.train.data import Dataset, index_pairs, read_corpus, rows_of
from nnpcalc.train.predict import Errors, evaluate

ANI_ELEMENTS = (1, 6, 7, 8, 9, 16, 17)
STRUCTURES_PER_BATCH = 24
TIMED_STEPS = 15


@dataclass(frozen=True)
class Setup:
    """How one architecture takes part.

    Attributes:
        options: fields of its Config; the others are the published ones.
        terms: energy terms beside the network, as in the section [terms] of a training file.
        charge_weight: of the loss on partial charges.
        neutral: trains on neutral closed shells of `ANI_ELEMENTS` alone.
    """

    options: dict[str, Any]
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    charge_weight: float = 0.0
    neutral: bool = False


STATE = {"state_embedding": ("charge",)}
SETUPS: dict[str, Setup] = {
    "schnet": Setup({"channels": 64, **STATE}),
    "painn": Setup({"channels": 64, **STATE}),
    "sake": Setup({"channels": 32, **STATE}),
    "dimenetpp": Setup(
        {"channels": 64, "triplet_channels": 32, "output_channels": 128, **STATE},
    ),
    "tensornet": Setup(
        {"channels": 64, "attributes": (), "attribute_weights": (), "cutoff": 5.0, **STATE}
    ),
    "aimnet2": Setup(
        {"hidden": (256, 192), "last_hidden": (256, 192, 192), "features": 128},
        {"coulomb": {"damping": "exponential", "radius": 4.6}},
        charge_weight=1.0,
    ),
    "physnet": Setup(
        {"channels": 64},
        {"coulomb": {"damping": "shielded", "radius": 5.0}},
        charge_weight=1.0,
    ),
    "ani2x": Setup({"elements": (1, 6, 7, 8, 16, 9, 17)}, neutral=True),
}


def drawn(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Random molecules with all their conformers, so many of these; the last may lack some."""
    rng = np.random.default_rng(seed)
    rank = rng.permutation(int(dataset.molecule.max()) + 1)[dataset.molecule]
    return dataset.take(np.argsort(rank, kind="stable")[:count])


def neutral(dataset: Dataset) -> np.ndarray:
    """Which conformers ANI-2x can take [M]: neutral closed shells of its elements."""
    known = np.isin(dataset.numbers, ANI_ELEMENTS)
    whole = np.logical_and.reduceat(known, dataset.offsets[:-1])
    return whole & (dataset.charge == 0) & (dataset.multiplicity == 1)


def covered(dataset: Dataset, by: Dataset) -> Dataset:
    """The conformers whose elements all occur in another data set."""
    known = np.isin(dataset.numbers, np.unique(by.numbers))
    return dataset.take(np.flatnonzero(np.logical_and.reduceat(known, dataset.offsets[:-1])))


def write(path: Path, training: Dataset, validation: Dataset) -> None:
    """Write both as one corpus."""
    parts = []
    for split, dataset in enumerate((training, validation)):
        part = asdict(dataset)
        part["charges"] = part.pop("partial_charges")
        parts.append({**part, "split": np.full(len(dataset), split)})
    np.savez(path, **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def prepare(corpus: Path, out: Path, conformers: int, validation: int, seed: int) -> None:
    """Write OUT/all.npz and OUT/neutral.npz, unless they are there.

    Raises:
        ValueError: they are there, made of another corpus or with other arguments.
    """
    files = sorted(corpus.glob("*.npz"))
    if not files:
        raise SystemExit(f"{corpus} holds no npz files")
    made_of = {
        "corpus": sums(files), "conformers": conformers, "validation": validation, "seed": seed
    }  # fmt: skip
    record = out / "corpus.json"
    if is_made(record, made_of):
        return
    known, unseen = read_corpus(files)
    # the trainer would leave out what lies above its own limit on forces
    peak = np.maximum.reduceat(np.abs(known.forces).max(axis=1), known.offsets[:-1])
    train = drawn(known.take(np.flatnonzero(peak <= DataConfig().max_force)), conformers, seed)
    test = drawn(covered(unseen, train), validation, seed)
    out.mkdir(parents=True, exist_ok=True)
    write(out / "all.npz", train, test)
    parts = [dataset.take(np.flatnonzero(neutral(dataset))) for dataset in (train, test)]
    write(out / "neutral.npz", *parts)
    record.write_text(json.dumps(made_of, indent=1))


def configuration(name: str, out: Path, steps: int, seed: int) -> Config:
    """The run of one architecture: whole epochs, as many as come closest to the wanted steps."""
    setup = SETUPS[name]
    file = out / ("neutral.npz" if setup.neutral else "all.npz")
    train, _ = read_corpus([file])
    atoms = round(STRUCTURES_PER_BATCH * train.n_atoms.mean())
    training = TrainingConfig(
        epochs=max(1, round(steps * STRUCTURES_PER_BATCH / len(train))),
        atoms_per_batch=atoms,
        learning_rate=1e-3,
        warmup_steps=min(100, steps // 10),
        energy_weight=5.0,
        final_energy_weight=10.0,
        charge_weight=setup.charge_weight,
        ema_decay=0.99,
        seed=seed,
        validation_atoms=2000,  # between epochs; the table is of the whole validation set
    )
    model = ModelConfig(architecture=name, options=dict(setup.options))
    return Config(name, model, DataConfig(files=(str(file),)), training, terms=dict(setup.terms))


def errors_of(dataset: Dataset, errors: Errors, chosen: np.ndarray) -> dict[str, float]:
    """Mean absolute errors of some conformers [M]: meV/atom, meV/Å and 0.001 e."""
    rows = np.flatnonzero(chosen)
    atoms = rows_of(dataset.offsets, rows)
    energy = np.abs(errors.energy[rows] / dataset.n_atoms[rows]).mean()
    result = {
        "conformers": int(rows.size),
        "energy_mae": 1000.0 * float(energy),
        "force_mae": 1000.0 * float(np.abs(errors.forces[atoms]).mean()),
    }
    if errors.charges is not None:
        result["charge_mae"] = 1000.0 * float(np.nanmean(np.abs(errors.charges[atoms])))
    return result


def measured(trainer: Trainer, file: str) -> dict[str, dict[str, float]]:
    """Errors of the averaged weights on the whole validation set: all, by charge, ANI's part."""
    dataset = read_corpus([file])[1]
    pairs = index_pairs(dataset, trainer.potential.cutoff)
    with averaged(trainer.parameters, trainer.average):
        errors = evaluate(trainer.fast, dataset, pairs, trainer.device)
    groups = {"all": np.ones(len(dataset), dtype=bool)}
    groups |= {f"{q:+d}": dataset.charge == q for q in np.unique(dataset.charge)}
    groups["ani"] = neutral(dataset)
    return {
        name: errors_of(dataset, errors, chosen) for name, chosen in groups.items() if chosen.any()
    }


def step_seconds(trainer: Trainer) -> float:
    """Processor time of a training step, median; the weights it changes are not kept."""
    plan = trainer.epoch_batches(0)
    times = []
    for k in range(TIMED_STEPS):
        begin = time.process_time()
        trainer.update(plan[k % len(plan)])
        times.append(time.process_time() - begin)
    return statistics.median(times)


def train(name: str, out: Path, steps: int, seed: int, until: float | None) -> dict[str, Any]:
    """Train one architecture, or go on; {} if the time was up before the end.

    Raises:
        ValueError: the directory holds the result of other settings or another corpus.
    """
    path = out / name / "result.json"
    config = configuration(name, out, steps, seed)
    asked = {
        "config": json.loads(json.dumps(asdict(config))),
        "data": [fingerprint(dataset) for dataset in read_corpus(config.data.files)],
    }
    if (found := earlier(path, asked)) is not None:
        return found
    trainer = Trainer(config, out / name)
    trainer.run(lambda line: print(line, flush=True), until)
    if not trainer.progress.finished(config.training):
        return {}
    steps_done = trainer.step
    errors = measured(trainer, config.data.files[0])
    result = {
        "architecture": name,
        "parameters": sum(p.numel() for p in trainer.parameters),
        "conformers": len(trainer.train),
        "steps": steps_done,
        "seconds_per_step": step_seconds(trainer),
        "errors": errors,
        **asked,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(result, indent=1))
    return result


def markdown(results: list[dict[str, Any]]) -> str:
    """The table; mean absolute errors in meV/atom, meV/Å and, of charges, 0.001 e."""
    charges = sorted(
        {c for r in results for c in r["errors"] if c not in ("all", "ani")}, key=lambda c: int(c)
    )
    head = ["architecture", "parameters", "trained on", "steps", "s/step", "E all", "F all"]
    head += [f"F {c}" for c in charges] + ["E ANI part", "F ANI part", "q"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for result in results:
        errors = result["errors"]
        part = SETUPS[result["architecture"]].neutral  # then only the last columns compare
        whole, by_charge = ({}, {}) if part else (errors["all"], errors)
        cells = [
            result["architecture"],
            f"{result['parameters']:,}",
            f"{result['conformers']:,}" + (", neutral" if part else ""),
            f"{result['steps']:,}",
            f"{result['seconds_per_step']:.2f}",
            *(f"{whole[key]:.1f}" if whole else "" for key in ("energy_mae", "force_mae")),
            *(f"{by_charge[c]['force_mae']:.0f}" if c in by_charge else "" for c in charges),
            *(f"{errors['ani'][key]:.1f}" for key in ("energy_mae", "force_mae")),
            f"{errors['all']['charge_mae']:.0f}" if "charge_mae" in errors["all"] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus", type=Path, help="directory of npz files")
    parser.add_argument("--out", type=Path, default=Path("eight"))
    parser.add_argument("--only", nargs="+", choices=tuple(SETUPS), default=tuple(SETUPS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--conformers", type=int, default=10_000, help="to train on")
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--minutes", type=float, help="stop, to be gone on with, after this long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    until = None if args.minutes is None else time.time() + 60.0 * args.minutes
    prepare(args.corpus, args.out, args.conformers, args.validation, args.seed)
    results = []
    for name in args.only:
        result = train(name, args.out, args.steps, args.seed, until)
        if not result:
            break
        results.append(result)
        table = markdown(results)
        (args.out / "table.md").write_text(table + "\n")
        (args.out / "results.json").write_text(json.dumps(results, indent=1))
    if results:
        print(table)


if __name__ == "__main__":
    main()
