"""What a training run needs to know: one TOML file, checked key by key."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEDULES = ("cosine", "plateau")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("float32", "tf32", "bfloat16")
TERMS = ("coulomb", "d3")  # what [terms] may hold; their settings are those of `build_potential`


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: the files and who of them validates (`nnpcalc.train.readers.read_dataset`)."""

    files: tuple[str, ...] = ()  # .npz, .xyz, .extxyz, .traj, .h5, .hdf5; or patterns
    #: Names of the labels in XYZ and HDF5 files, by energy, forces, charges; else the usual names.
    labels: dict[str, str] = field(default_factory=dict)
    validation_fraction: float = 0.05  # of the conformers whose file gives them no split
    split_by: str = "molecule"  # what is drawn for validation: "molecule" or "conformer"
    seed: int = 1  # of that drawing
    max_force: float = 20.0  # eV/Å; training conformers with a larger force component are left out
    #: How often an epoch shows the conformers of a charge, by the charge as a string; else once.
    repeats: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.files:
            if not isinstance(file, str):
                raise ValueError(f"[data] files must be names, not {file!r}")
        if not self.max_force > 0.0:
            raise ValueError(f"[data] max_force must be above 0, not {self.max_force}")
        for charge, times in self.repeats.items():
            if re.fullmatch(r"[+-]?[0-9]+", charge) is None:
                raise ValueError(f'[data] repeats is by charge, such as "-1", not {charge!r}')
            if type(times) is not int or times < 0:
                raise ValueError(f"[data] repeats: {charge} = {times!r} is no number of times")


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: architecture, its options, and the terms beside it.

    What a fine-tuning does not ask for, it takes from the initial model.
    """

    architecture: str = "tensornet"
    zbl_reach: float = 0.8  # fraction of the covalent distance; 0 leaves the term out
    state_energy: bool = True  # fit an energy of charge and multiplicity; false for blind models
    options: dict[str, Any] = field(default_factory=dict)  # every other key of the section


@dataclass(frozen=True)
class TrainingConfig:
    """``[training]``: optimisation."""

    epochs: int = 10  # 0, with initial: validate and keep the starting point
    atoms_per_batch: int = 1400  # a batch is filled with conformers up to so many atoms,
    pairs_per_batch: int = 0  # or, above 0, up to so many pairs within the cutoff
    learning_rate: float = 1e-3  # highest, after the warm-up
    final_learning_rate: float = 1e-6  # end of the cosine, or floor of the plateau schedule
    warmup_steps: int = 500  # the rate rises in proportion to the steps
    schedule: str = "cosine"  # or "plateau": by validation loss
    plateau_patience: int = 5  # epochs without a best validation loss before the rate is lowered
    plateau_factor: float = 0.5  # by this factor
    patience: int = 0  # stop after so many epochs without a best validation loss; 0: never
    optimizer: str = "adamw"  # or "muon": Muon for the matrices, AdamW for all else
    weight_decay: float = 0.0
    energy_weight: float = 5.0  # on |error of the energy per atom|, per eV
    final_energy_weight: float = 5.0  # reached at the end, in proportion to the steps done
    force_weight: float = 1.0  # on the length of the force error of an atom, per eV/Å
    charge_weight: float = 0.0  # on |error of a partial charge|, per e; for cores that return them
    shift_weight: float = 0.0  # on the shift of a minimum, per Å; for data with soft modes
    gradient_clip: float = 10.0  # largest norm of the gradient; 0: any
    ema_decay: float = 0.999  # of the running average of the weights that is validated and kept
    seed: int = 1  # of the weights and of the order of the conformers
    knots: int = 512  # radial table of the fused path; 0 trains through the eager network
    precision: str = "float32"  # or "tf32" (CUDA), or "bfloat16" for the matrix products
    validation_atoms: int = 0  # 0: validate on all; else on the first conformers up to that
    checkpoint_minutes: float = 3.0
    tensorboard: bool = False  # also write an event file into the run's directory
    initial: str = ""  # name or path of a model whose weights are the starting point
    initial_average: tuple[str, ...] = ()  # further models: their weights and initial's, the mean
    keep_baseline: bool = False  # with initial: keep its atomic energies, else refit them

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"[training] {name} = {getattr(self, name)!r}; known are {', '.join(known)}"
                )
        if self.initial_average and not self.initial:
            raise ValueError("[training] initial_average needs initial, the first of the models")
        if self.epochs < 0 or not (self.epochs or self.initial):
            raise ValueError(
                f"[training] epochs must be at least 1, or 0 with initial, not {self.epochs}"
            )
        for name in ("atoms_per_batch", "plateau_patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"[training] {name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "learning_rate", "final_learning_rate", "weight_decay", "energy_weight",
            "final_energy_weight", "force_weight", "charge_weight", "shift_weight",
            "gradient_clip", "warmup_steps", "patience", "validation_atoms", "pairs_per_batch",
            "checkpoint_minutes",
        ):  # fmt: skip
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"[training] {name} must be a number from 0 up, not {value}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"[training] ema_decay must lie in [0, 1), not {self.ema_decay}")
        if self.knots and self.knots < 16:
            raise ValueError(f"[training] knots must be 0 or at least 16, not {self.knots}")
        if not 0.0 < self.plateau_factor < 1.0:
            raise ValueError(
                f"[training] plateau_factor must lie between 0 and 1, not {self.plateau_factor}"
            )


@dataclass(frozen=True)
class Config:
    """A whole run.

    ``[terms]`` holds energies beside the network and its ZBL, by name, each with its settings;
    ``[card]`` says what only the model's maker knows (labels, licence, citation).
    """

    name: str
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    card: dict[str, Any] = field(default_factory=dict)  # copied into the model's card
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: tuple[str, ...] = ()  # options of [model] that the file sets, be it to their defaults

    def asks(self, option: str) -> bool:
        """Whether an option of `ModelConfig` was set."""
        value = getattr(self.model, option)
        return option in self.asked or value != getattr(ModelConfig(), option)

    def __post_init__(self) -> None:
        for name, settings in self.terms.items():
            if name not in TERMS:
                raise ValueError(
                    f"[terms] has no {name!r}; it takes {', '.join(TERMS)}. Atomic energies and "
                    "the energy of a state are fitted anyway, ZBL is [model] zbl_reach"
                )
            if not isinstance(settings, dict):
                raise ValueError(
                    f"[terms] {name} must be a table of settings, not {settings!r}: {name} = {{}}"
                )


def read_config(path: str | Path) -> Config:
    """Read a TOML file.

    Raises:
        ValueError: not TOML, an unknown section or option, or a value of the wrong kind.
    """
    with open(path, "rb") as file:
        try:
            content = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from error
    sections = {"model", "terms", "data", "training", "card"}
    unknown = sorted(set(content) - {"name", *sections})
    if unknown or "name" not in content:
        raise ValueError(
            f"{path}: needs a name and the sections [model], [terms], [data], [training], [card]; "
            f"found {', '.join(sorted(content))}"
        )
    for section in sorted(sections & set(content)):
        if not isinstance(content[section], dict):
            raise ValueError(f"{path}: {section} must be a section, [{section}], not a value")
    model = dict(content.get("model", {}))
    own = {f.name for f in fields(ModelConfig)} - {"options"}
    chosen = {key: model.pop(key) for key in sorted(own & set(model))}
    return Config(
        name=str(content["name"]),
        model=_section(ModelConfig, {**chosen, "options": model}, "model"),
        data=_section(DataConfig, content.get("data", {}), "data"),
        training=_section(TrainingConfig, content.get("training", {}), "training"),
        card=dict(content.get("card", {})),
        terms=dict(content.get("terms", {})),
        asked=tuple(chosen),
    )


def _section(kind: Any, values: dict[str, Any], title: str) -> Any:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"[{title}] has no option {', '.join(map(repr, unknown))}; known are "
            f"{', '.join(sorted(known))}"
        )
    default = kind()
    return kind(
        **{k: _checked(v, getattr(default, k), f"[{title}] {k}") for k, v in values.items()}
    )


def _checked(value: Any, default: Any, title: str) -> Any:
    """The value in the type of its default, or an error; TOML writes tuples as lists."""
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ValueError(
            f"{title} must be a {type(default).__name__}, not the {type(value).__name__} {value!r}"
        )
    return value
