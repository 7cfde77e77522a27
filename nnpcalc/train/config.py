"""What a training run needs to know: one TOML file, checked key by key."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: npz corpora with their own split (see `nnpcalc.train.data.read_corpus`)."""

    files: tuple[str, ...] = ()
    max_force: float = 20.0  # eV/Å; training conformers with a larger force component are left out
    #: How often an epoch shows the conformers of a charge, by the charge as a string; else once.
    repeats: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: architecture, its options, and the terms beside it."""

    architecture: str = "tensornet"
    zbl_reach: float = 0.8  # fraction of the covalent distance; 0 leaves the term out
    options: dict[str, Any] = field(default_factory=dict)  # every other key of the section


@dataclass(frozen=True)
class TrainingConfig:
    """``[training]``: optimisation."""

    epochs: int = 10
    atoms_per_batch: int = 1400
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_steps: int = 500
    weight_decay: float = 0.0
    energy_weight: float = 5.0  # on |error of the energy per atom|, per eV
    final_energy_weight: float = 5.0  # reached at the end, in proportion to the steps done
    force_weight: float = 1.0  # on the length of the force error of an atom, per eV/Å
    gradient_clip: float = 10.0
    ema_decay: float = 0.999
    seed: int = 1
    knots: int = 512  # radial table of the fused path; 0 trains through the eager network
    validation_atoms: int = 0  # 0: validate on all; else on the first conformers up to that
    checkpoint_minutes: float = 3.0


@dataclass(frozen=True)
class Config:
    """A whole run; ``[card]`` says what only its maker knows (labels, licence, citation)."""

    name: str
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    card: dict[str, Any] = field(default_factory=dict)  # copied into the model's card


def _section(kind: Any, values: dict[str, Any], title: str) -> Any:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"[{title}] has no option {', '.join(map(repr, unknown))}; known are "
            f"{', '.join(sorted(known))}"
        )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def read_config(path: str | Path) -> Config:
    """Read a TOML file.

    Raises:
        ValueError: an unknown section or option.
    """
    with open(path, "rb") as file:
        content = tomllib.load(file)
    unknown = sorted(set(content) - {"name", "model", "data", "training", "card"})
    if unknown or "name" not in content:
        raise ValueError(
            f"{path}: needs a name and the sections [model], [data], [training], [card]; "
            f"found {', '.join(sorted(content))}"
        )
    model = dict(content.get("model", {}))
    own = {"architecture", "zbl_reach"}
    chosen = {key: model.pop(key) for key in sorted(own & set(model))}
    return Config(
        name=str(content["name"]),
        model=ModelConfig(**chosen, options=model),
        data=_section(DataConfig, content.get("data", {}), "data"),
        training=_section(TrainingConfig, content.get("training", {}), "training"),
        card=dict(content.get("card", {})),
    )
