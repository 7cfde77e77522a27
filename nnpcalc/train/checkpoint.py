"""Files a run goes on from: written whole or not at all, checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.train.config import Config, ModelConfig
from nnpcalc.train.data import Dataset


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
    """A checkpoint, and what of the training options has changed since it was written.

    Args:
        path: the file.
        config: of the run that wants to go on; its model must be the checkpoint's.
        data: `fingerprint` of its training data, which must be the checkpoint's as well.
        device: where the tensors go.

    Raises:
        ValueError: the checkpoint belongs to another model or to other data.
    """
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    before, now = json.loads(content["config"]), json.loads(json.dumps(asdict(config)))
    model = {**asdict(ModelConfig()), **before["model"]}  # options added since have their defaults
    if model != now["model"]:
        raise ValueError(
            f"{path} was written by another model: {model}; train {now['model']} in a new directory"
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
        f"{key} = {before['training'][key]!r} -> {value!r}"
        for key, value in now["training"].items()
        if before["training"].get(key, value) != value
    ]
    return content, changed


def fingerprint(dataset: Dataset) -> str:
    """A hash of compositions, states and energies, in their order."""
    digest = hashlib.sha256()
    for name in ("n_atoms", "numbers", "charge", "multiplicity", "energy"):
        digest.update(getattr(dataset, name).tobytes())
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
