"""Files a run goes on from: written whole or not at all, checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.train.config import Config, ModelConfig, TrainingConfig
from nnpcalc.train.data import Dataset

#: Options that say where the weights come from and how they are optimised: fixed for a run.
BEGINNING = ("initial", "initial_average", "keep_baseline", "optimizer")


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Save by temporary file, fsync and rename, so that a kill leaves the old file or the new."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_checkpoint(
    path: Path, config: Config, data: str, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """A checkpoint, and which options have changed since it was written.

    Args:
        path: the file.
        config: of the run that wants to go on; its model must be the checkpoint's.
        data: `fingerprint` of its training data, which must be the checkpoint's as well.
        device: where the tensors go.

    Raises:
        ValueError: it is no whole checkpoint, or belongs to another model, another beginning or
            other data.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        before = json.loads(content["config"])
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(
            f"{path} is no whole checkpoint ({type(error).__name__}: {error}): move it away to "
            "train from the beginning"
        ) from error
    now = json.loads(json.dumps(asdict(config)))
    started = json.loads(json.dumps(asdict(TrainingConfig()))) | before["training"]
    for key in BEGINNING:
        if started[key] != now["training"][key]:
            raise ValueError(
                f"{path} was begun with {key} = {started[key]!r}, not {now['training'][key]!r}: "
                f"give the same{' (--init)' if key == 'initial' else ''}, or train in a new "
                "directory"
            )
    model = {**asdict(ModelConfig()), **before["model"]}
    if model != now["model"]:
        old, new = (
            ", ".join(f"{k} = {of[k]!r}" for k in model if model[k] != now["model"].get(k))
            for of in (model, now["model"])
        )
        raise ValueError(
            f"{path} was written by another model, with {old}: train {new} in a new directory"
        )
    terms = before.get("terms", {})
    if terms != now["terms"]:
        raise ValueError(
            f"{path} was written with other [terms]: {terms}; train {now['terms']} in a new "
            "directory"
        )
    if content.get("data", data) != data:
        raise ValueError(
            f"{path} was written with other training data: train in a new directory, with "
            "[training] initial if the weights shall be kept"
        )
    changed = [
        f"{key} = {before[section][key]!r} -> {value!r}"
        for section in ("data", "training")
        for key, value in now[section].items()
        if key != "files" and before[section].get(key, value) != value  # their content is compared
    ]
    return content, changed


def fingerprint(dataset: Dataset) -> str:
    """A hash of structures, states and labels, in their order."""
    digest = hashlib.sha256()
    for name in (
        "n_atoms", "numbers", "positions", "charge", "multiplicity", "energy", "forces",
        "partial_charges", "given_charges", "soft_modes",
    ):  # fmt: skip
        digest.update(np.ascontiguousarray(getattr(dataset, name)).data)
    return digest.hexdigest()


class averaged:
    """Context in which the parameters hold their running averages."""

    def __init__(self, parameters: list[nn.Parameter], average: list[Tensor]) -> None:
        self.pairs = list(zip(parameters, average, strict=True))

    def _swap(self) -> None:
        with torch.no_grad():
            for parameter, average in self.pairs:
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()
