"""A small labelled corpus and its training configuration, for the tests of nnpcalc.train."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.morse import MorsePotential

from nnpcalc.train import Config, read_config

CONFIG = """
name = "tiny"
[model]
architecture = "tensornet"
channels = 8
layers = 1
radial_functions = 8
cutoff = 4.0
[data]
files = ["tiny.npz"]
[training]
epochs = 6
atoms_per_batch = 20
learning_rate = 2e-2
warmup_steps = 5
ema_decay = 0.9
knots = 128
[card]
reference_method = "Morse potential"
"""


def structures(n: int = 120, seed: int = 5) -> list[Atoms]:
    """Hydrogen chains with ASE's Morse potential plus an energy of the charge, the last 20 for
    validation."""
    rng = np.random.default_rng(seed)
    result = []
    for k in range(n):
        size = int(rng.integers(2, 6))
        atoms = Atoms(
            "H" * size, rng.normal(size=(size, 3)) * 0.25 + np.arange(size)[:, None] * 0.8
        )
        atoms.calc = MorsePotential(epsilon=1.0, r0=1.0, rho0=3.0)
        charge = int(rng.integers(-1, 2))
        atoms.info = {
            "charge": charge,
            "spin": 1 + (size - charge) % 2,
            "energy": atoms.get_potential_energy() - 13.0 * size + 2.0 * charge,
            "molecule": k // 4,
            "source": k % 2,
            "split": int(k >= n - 20),
        }
        atoms.arrays["forces"] = atoms.get_forces()
        atoms.arrays["charges"] = charge / size + 0.1 * (np.arange(size) == 0)
        atoms.calc = None
        result.append(atoms)
    return result


def write_corpus(directory: Path) -> None:
    """Write tiny.npz and tiny.toml."""
    listed = structures()
    names = ("charge", "energy", "molecule", "source", "split")
    arrays = {name: np.array([atoms.info[name] for atoms in listed]) for name in names}
    arrays["n_atoms"] = np.array([len(atoms) for atoms in listed])
    arrays["multiplicity"] = np.array([atoms.info["spin"] for atoms in listed])
    for name in ("numbers", "positions", "forces", "charges"):
        arrays[name] = np.concatenate([atoms.arrays[name] for atoms in listed])
    np.savez(directory / "tiny.npz", **arrays)
    (directory / "tiny.toml").write_text(CONFIG)


def settings(workplace: Path, **training: object) -> Config:
    """The configuration of ``workplace`` with larger batches, fewer epochs, and these options."""
    config = read_config(workplace / "tiny.toml")
    data = dataclasses.replace(config.data, files=(str(workplace / "tiny.npz"),))
    options = {"epochs": 3, "atoms_per_batch": 60, **training}
    return dataclasses.replace(
        config, data=data, training=dataclasses.replace(config.training, **options)
    )


def write_settings(config: Config, path: Path) -> None:
    """A TOML file that reads as this configuration."""

    def lines(values: dict[str, object]) -> list[str]:
        return [
            f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}"
            for key, v in values.items()
            if isinstance(v, (str, bool, int, float))
        ]

    model = dataclasses.asdict(config.model)
    sections = {
        "model": {**model, **model["options"]},
        "training": dataclasses.asdict(config.training),
    }
    text = [f"name = {config.name!r}", "[data]", f"files = {list(config.data.files)!r}"]
    for name, values in sections.items():
        text += [f"[{name}]", *lines(values)]
    path.write_text("\n".join(text) + "\n")


def silent(_: str) -> None:
    """A report that nobody reads."""


def comparable(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """A run's log without what differs from run to run."""
    return [{key: value for key, value in row.items() if key != "unix_time"} for row in log]
