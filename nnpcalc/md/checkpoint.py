"""Checkpoints: everything a run needs to go on bit for bit, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.md.files import write_atomically
from nnpcalc.md.state import ATOM_FIELDS, SYSTEM_FIELDS, MDState
from nnpcalc.md.watchdog import Incident, Reference

FORMAT = "nnpcalc-md-1"

_BATCH = ("numbers", "positions", "cell", "pbc", "system", "charge", "multiplicity")
_OPTIONAL = ("mobile", "stress")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or belongs to another run; the text says which."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    Attributes:
        state: of the replicas that go on.
        frozen: the last good states of the replicas that were stopped.
        incidents: why they were.
        reference: what the watchdog compares with.
        settings: integrator, force field and files of the run; JSON.
        marks: where the trajectory ends, as its writer says it; JSON.
    """

    state: MDState
    frozen: tuple[MDState, ...] = ()
    incidents: tuple[Incident, ...] = ()
    reference: Reference | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file; the one before stays until this one is on the disk.

        Raises:
            OSError: names the file.
        """
        tensors = _tensors(self.state, "state")
        for k, state in enumerate(self.frozen):
            tensors.update(_tensors(state, f"frozen{k}"))
        if self.reference is not None:
            tensors["reference/bonds"] = self.reference.bonds
            if self.reference.conserved is not None:
                tensors["reference/conserved"] = self.reference.conserved
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        head = {
            "format": FORMAT,
            "states": [_scalars(state) for state in (self.state, *self.frozen)],
            "incidents": [list(vars(incident).values()) for incident in self.incidents],
            "settings": self.settings,
            "marks": self.marks,
            "digest": _digest(tensors),
        }
        write_atomically(path, save(tensors, {"head": json.dumps(head)}))

    @staticmethod
    def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
        """Read a file.

        Raises:
            CheckpointError: not a checkpoint, of another version, or damaged.
        """
        try:
            with safe_open(str(path), "pt") as file:
                head = json.loads((file.metadata() or {})["head"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is no checkpoint, or damaged: {error}") from error
        if head.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has the format {head.get('format')!r}, not {FORMAT!r}: use the version "
                "of nnpcalc that wrote it"
            )
        if head["digest"] != _digest(tensors):
            raise CheckpointError(f"{path} is damaged: its contents do not match their digest")
        states = [
            _state(tensors, f"frozen{k - 1}" if k else "state", scalars).to(device)
            for k, scalars in enumerate(head["states"])
        ]
        reference = None
        if "reference/bonds" in tensors:
            conserved = tensors.get("reference/conserved")
            reference = Reference(
                None if conserved is None else conserved.to(device),
                tensors["reference/bonds"].to(device),
            )
        incidents = tuple(
            Incident(replica, step, reason, tuple(atoms))
            for replica, step, reason, atoms in head["incidents"]
        )
        return Checkpoint(
            states[0], tuple(states[1:]), incidents, reference, head["settings"], head["marks"]
        )


def _scalars(state: MDState) -> dict[str, int]:
    return {"seed": state.seed, "step": state.step}


def _tensors(state: MDState, prefix: str) -> dict[str, Tensor]:
    tensors = {f"atoms/{name}": getattr(state.atoms, name) for name in _BATCH}
    if state.atoms.partial_charges is not None:
        tensors["atoms/partial_charges"] = state.atoms.partial_charges
    tensors.update({name: getattr(state, name) for name in ATOM_FIELDS + SYSTEM_FIELDS})
    tensors.update(
        {name: getattr(state, name) for name in _OPTIONAL if getattr(state, name) is not None}
    )
    tensors.update({f"per_system/{k}": v for k, v in state.system_variables.items()})
    tensors.update({f"per_atom/{k}": v for k, v in state.atom_variables.items()})
    # cloned, because safetensors refuses tensors that share memory
    return {f"{prefix}/{name}": tensor.clone() for name, tensor in tensors.items()}


def _state(tensors: dict[str, Tensor], prefix: str, scalars: dict[str, int]) -> MDState:
    own = {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}/")
    }

    def part(start: str) -> dict[str, Tensor]:
        return {k.removeprefix(start): v for k, v in own.items() if k.startswith(start)}

    values: dict[str, Any] = {name: own[name] for name in ATOM_FIELDS + SYSTEM_FIELDS}
    values.update({name: own.get(name) for name in _OPTIONAL}, **scalars)
    return MDState(
        atoms=AtomsBatch(**part("atoms/")),
        **values,
        system_variables=part("per_system/"),
        atom_variables=part("per_atom/"),
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
