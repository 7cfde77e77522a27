"""TensorNets that see the electronic state in different ways, trained alike and compared.

The test is exact degeneracy: the corpora hold every geometry in several states, so that a network
that does not know the state has one answer for labels that are electronvolts apart. The best that
any such model can do is known: see `floor`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from records import earlier

from nnpcalc.potential import Potential
from nnpcalc.train.checkpoint import averaged, fingerprint
from nnpcalc.train.config import Config, DataConfig, ModelConfig, TrainingConfig
from nnpcalc.train.data import Dataset, index_pairs, read_corpus, rows_of
from nnpcalc.train.predict import Errors, evaluate
from nnpcalc.train.trainer import Trainer


@dataclass(frozen=True)
class Variant:
    """One way to tell a TensorNet the state.

    Attributes:
        name: row of the table.
        options: of `nnpcalc.models.tensornet.TensorNetConfig`.
        state_energy: add the term fitted to charge and unpaired electrons. A state-blind model
            has none: it would know the state.
    """

    name: str
    options: dict[str, Any]
    state_energy: bool = False


def variants(attribute: str) -> tuple[Variant, ...]:
    """All of them for "charge" or "unpaired_electrons"."""
    blind: dict[str, Any] = {"attributes": (), "attribute_weights": ()}

    def prefactor(weight: float, learnable: bool = False) -> dict[str, Any]:
        return {
            "attributes": (attribute,),
            "attribute_weights": (weight,),
            "learnable_attribute_weights": learnable,
        }

    learnable = prefactor(0.1, learnable=True)
    embedding = {**blind, "state_embedding": (attribute,)}
    return (
        Variant("state-blind", blind),
        Variant("λ = 0.1", prefactor(0.1)),
        Variant("λ = 0.4", prefactor(0.4)),
        Variant("λ = 1.0", prefactor(1.0)),
        Variant("λ learnable", learnable),
        Variant("state embedding", embedding),
        Variant("state energy only", blind, True),
        Variant("λ = 0.1, state energy", prefactor(0.1), True),
        Variant("λ learnable, state energy", learnable, True),
        Variant("state embedding, state energy", embedding, True),
    )


@dataclass(frozen=True)
class Settings:
    """What all variants of a table share; see `nnpcalc.train.config.TrainingConfig`."""

    channels: int = 32
    layers: int = 1
    radial_functions: int = 16
    cutoff: float = 5.0
    epochs: int = 2
    atoms_per_batch: int = 400
    learning_rate: float = 3e-3
    optimizer: str = "adamw"
    energy_weight: float = 5.0
    final_energy_weight: float = 10.0
    knots: int = 128


def geometries_of(dataset: Dataset) -> np.ndarray:
    """The same whole number for conformers with the same atoms in the same places: [M]."""
    known: dict[bytes, int] = {}
    result = np.empty(len(dataset), dtype=np.int64)
    for row in range(len(dataset)):
        atoms = slice(dataset.offsets[row], dataset.offsets[row + 1])
        key = dataset.numbers[atoms].tobytes() + dataset.positions[atoms].tobytes()
        result[row] = known.setdefault(key, len(known))
    return result


def floor(dataset: Dataset) -> tuple[float, float]:
    """Smallest mean absolute errors, of energies (eV) and force components (eV/Å), that a function
    of the geometry alone can have: its best answer is the median over the states.
    """
    geometry = geometries_of(dataset)
    energy = np.zeros(len(dataset))
    forces = np.zeros_like(dataset.forces)
    for rows in groups(geometry):
        energy[rows] = dataset.energy[rows] - np.median(dataset.energy[rows])
        atoms = rows_of(dataset.offsets, rows)
        labels = dataset.forces[atoms].reshape(rows.size, -1)
        forces[atoms] = (labels - np.median(labels, axis=0)).reshape(-1, 3)
    return float(np.abs(energy).mean()), float(np.abs(forces).mean())


def groups(keys: np.ndarray) -> list[np.ndarray]:
    """Indices of equal keys, in ascending order of the key."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def gaps(dataset: Dataset, energy: np.ndarray) -> np.ndarray:
    """Energy of the highest multiplicity minus that of the lowest, eV, per geometry with both."""
    result = []
    for rows in groups(geometries_of(dataset)):
        low, high = rows[np.argsort(dataset.multiplicity[rows], kind="stable")][[0, -1]]
        if dataset.multiplicity[high] > dataset.multiplicity[low]:
            result.append(energy[high] - energy[low])
    return np.array(result)


def thin(files: Sequence[str | Path], target: Path, training: int, validation: int) -> None:
    """Write a corpus of the first so many geometries of every molecule, with all their states."""
    parts = []
    for split, (dataset, wanted) in enumerate(
        zip(read_corpus(files), (training, validation), strict=True)
    ):
        kept: list[np.ndarray] = []
        seen: dict[int, int] = {}
        for rows in groups(geometries_of(dataset)):
            molecule = int(dataset.molecule[rows[0]])
            seen[molecule] = seen.get(molecule, 0) + 1
            if seen[molecule] <= wanted:
                kept.append(rows)
        if not kept:
            raise ValueError(f"{', '.join(map(str, files))}: no conformer has split {split}")
        part = asdict(dataset.take(np.concatenate(kept)))
        part["charges"] = part.pop("partial_charges")
        part["split"] = np.full(part["energy"].size, split)
        parts.append(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


Measure = Callable[[Dataset, Errors], dict[str, float]]


def mean_errors(dataset: Dataset, errors: Errors) -> dict[str, float]:
    """Mean absolute errors of total energies (eV) and force components (eV/Å)."""
    return {
        "energy_mae": float(np.abs(errors.energy).mean()),
        "force_mae": float(np.abs(errors.forces).mean()),
    }


def train(
    variant: Variant, corpus: Path, settings: Settings, seed: int, directory: Path, measure: Measure
) -> dict[str, Any]:
    """Train one model and measure its averaged weights of the last step on the validation set.

    The result is kept as ``result.json`` in the directory, and read from there the next time.

    Raises:
        ValueError: the directory holds the result of other settings or another corpus.
    """
    training, validation = read_corpus([corpus])
    asked = {
        "settings": asdict(settings),
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in variant.options.items()},
        "state_energy": variant.state_energy,
        "seed": seed,
        "data": [fingerprint(training), fingerprint(validation)],
    }
    path = directory / "result.json"
    if (found := earlier(path, asked)) is not None:
        return found
    own = ("channels", "layers", "radial_functions", "cutoff")
    shared = asdict(settings)
    options = {**{name: shared.pop(name) for name in own}, **variant.options}
    config = Config(
        name=directory.name,
        model=ModelConfig(state_energy=variant.state_energy, options=options),
        data=DataConfig(files=(str(corpus),)),
        # The trainer's own validation is not used: the weights are those of the last step.
        training=TrainingConfig(**shared, warmup_steps=50, seed=seed, validation_atoms=400),
    )
    start = time.monotonic()
    trainer = Trainer(config, directory)
    before = attribute_weights(trainer.potential)
    trainer.run(lambda line: None)
    seconds = time.monotonic() - start
    with averaged(trainer.parameters, trainer.average):
        errors = evaluate(
            trainer.fast, validation, index_pairs(validation, settings.cutoff), trainer.device
        )
    weights = attribute_weights(trainer.potential)
    if weights != before and not variant.options.get("learnable_attribute_weights"):
        raise RuntimeError(f"{variant.name}: fixed weights went from {before} to {weights}")
    result = {
        **asked,
        "variant": variant.name,
        "steps": trainer.step,
        "seconds": round(seconds, 1),
        "attribute_weights": weights,
        **measure(validation, errors),
    }
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    return result


def attribute_weights(potential: Potential) -> list[float]:
    """λ of every layer."""
    return [
        float(value)
        for name, parameter in potential.named_parameters()
        if name.endswith("attribute_weights")
        for value in parameter.detach().reshape(-1)
    ]


def slug(name: str) -> str:
    """A variant's name as a file name."""
    plain = name.replace("λ", "lambda").replace("=", "").replace(",", "").split()
    return "-".join(plain)


def compare(
    chosen: Sequence[Variant],
    corpus: Path,
    settings: Settings,
    seeds: Sequence[int],
    output: Path,
    measure: Measure,
) -> list[dict[str, Any]]:
    """Train every variant from every seed; all seeds of one after the other."""
    results = []
    for seed in seeds:
        for variant in chosen:
            directory = output / f"{slug(variant.name)}-{seed}"
            result = train(variant, corpus, settings, seed, directory, measure)
            print(
                f"{variant.name}, seed {seed}: energy {result['energy_mae']:.3f} eV, forces "
                f"{result['force_mae']:.3f} eV/Å, {result['steps']} steps, {result['seconds']} s",
                flush=True,
            )
            results.append(result)
    return results


def markdown(
    results: Sequence[dict[str, Any]], columns: dict[str, str], floors: dict[str, float]
) -> str:
    """Mean and standard deviation over the seeds of each variant, below the floor.

    Args:
        results: of `compare`.
        columns: heading of each measure.
        floors: best values of a state-blind model.
    """
    names = list(dict.fromkeys(result["variant"] for result in results))
    lines = [
        "| model | " + " | ".join(columns.values()) + " |",
        "|---" * (1 + len(columns)) + "|",
        "| floor of any state-blind model | "
        + " | ".join(f"{floors[key]:.3f}" if key in floors else "" for key in columns)
        + " |",
    ]
    for name in names:
        cells = []
        for key in columns:
            values = np.array([r[key] for r in results if r["variant"] == name])
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=min(1, values.size - 1)):.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(
    output: Path, title: str, table: str, results: Sequence[dict[str, Any]], floors: dict[str, Any]
) -> None:
    """Print the table, and write it beside everything behind it."""
    print(f"\n{title}\n\n{table}")
    (output / "table.md").write_text(f"{title}\n\n{table}\n")
    content = {"title": title, "floor": floors, "results": list(results)}
    (output / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))


def choose(every: Sequence[Variant], names: Sequence[str] | None) -> list[Variant]:
    """The variants of these names; all if none are given.

    Raises:
        ValueError: a name is not known.
    """
    known = {slug(variant.name): variant for variant in every}
    for name in names or ():
        if name not in known:
            raise ValueError(f"no variant {name!r}; known are {', '.join(known)}")
    return [known[name] for name in names or known]
