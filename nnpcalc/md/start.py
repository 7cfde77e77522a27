"""The first state of a run, and whether a later one belongs to the same structures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nnpcalc.batch import AtomsBatch
from nnpcalc.md.checkpoint import CheckpointError
from nnpcalc.md.constraints import heavier_hydrogen, mobile_atoms
from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.random import checked_seed
from nnpcalc.md.state import MDState
from nnpcalc.md.thermal import Temperatures, with_thermal_momenta
from nnpcalc.units import FS


def initial_state(
    structures: Any,
    force_field: ForceField,
    integrator: Any,
    *,
    temperature: Temperatures | None = None,
    seed: int | None = None,
    replicas: Iterable[int] | None = None,
    hydrogen_mass: float | None = None,
) -> MDState:
    """The state at step 0, without forces; the arguments are those of `run`.

    Raises:
        ValueError: what cannot be simulated.
    """
    if isinstance(structures, MDState):
        if any(value is not None for value in (seed, replicas, hydrogen_mass)):
            raise ValueError("a state has its own seed, replicas and masses: leave them out")
        return _with_momenta(structures, integrator, temperature)
    listed: list[Atoms] = [structures] if isinstance(structures, Atoms) else list(structures)
    batch = batch_of(listed, force_field)
    if not batch.n_systems:
        raise ValueError("there is nothing to simulate: the list of structures is empty")
    masses = torch.from_numpy(np.concatenate([a.get_masses() for a in listed])).to(batch.device)
    if hydrogen_mass is not None:
        masses = heavier_hydrogen(batch, masses, hydrogen_mass)
    momenta = torch.from_numpy(np.concatenate([a.get_momenta() for a in listed])) * FS
    state = MDState.start(
        batch,
        masses,
        seed=checked_seed(seed),
        momenta=momenta.to(batch.device),
        mobile=mobile_atoms(listed),
        replica=_identities(replicas, batch),
    )
    return _with_momenta(state, integrator, temperature)


def batch_of(structures: Sequence[Atoms], force_field: ForceField) -> AtomsBatch:
    """Structures as a float64 batch, checked by the force field if it can."""
    check = getattr(force_field, "batch", None)
    return AtomsBatch.from_atoms(structures) if check is None else check(structures)


def _identities(replicas: Iterable[int] | None, batch: AtomsBatch) -> torch.Tensor | None:
    if replicas is None:
        return None
    listed = list(replicas)
    if len(listed) != batch.n_systems or not all(0 <= r < 1 << 32 for r in listed):
        raise ValueError(
            f"replicas must be {batch.n_systems} identities of 0 .. 2^32 - 1, not {listed}"
        )
    return torch.tensor(listed, dtype=torch.int64, device=batch.device)


def _with_momenta(state: MDState, integrator: Any, temperature: Temperatures | None) -> MDState:
    if temperature is not None:
        return with_thermal_momenta(state, temperature)
    if bool(state.momenta.any()):
        return state
    inner = getattr(integrator, "inner", integrator)
    own = getattr(inner, "temperature", None)
    if own is None:
        raise ValueError(
            "the structures have no momenta: give temperature= for momenta drawn at the start "
            "(0 starts at rest)"
        )
    return with_thermal_momenta(state, own)


def same_structures(structures: Any, state: MDState, frozen: Sequence[MDState]) -> None:
    """Refuse a checkpoint of other molecules than those given.

    Raises:
        CheckpointError: other elements, charges, multiplicities or numbers of them.
    """
    saved = sorted(_signatures(replace(state)) + [s for f in frozen for s in _signatures(f)])
    if isinstance(structures, MDState):
        given = sorted(_signatures(structures))
        if given != saved:
            raise CheckpointError(
                "the checkpoint is of other molecules or replicas than the state given"
            )
        return
    listed = [structures] if isinstance(structures, Atoms) else list(structures)
    elements = sorted(tuple(a.numbers.tolist()) for a in listed)
    before = sorted(signature[3] for signature in saved)
    if elements != before:
        raise CheckpointError(
            f"the checkpoint is of {len(before)} replicas of other elements or another order of "
            f"atoms than the {len(elements)} structures given"
        )


def _signatures(state: MDState) -> list[tuple[int, int, int, tuple[int, ...]]]:
    here = state.cpu()
    parts = here.atoms.numbers.split(here.counts.tolist())
    charge, multiplicity = here.atoms.charge.tolist(), here.atoms.multiplicity.tolist()
    return [
        (replica, charge[b], multiplicity[b], tuple(parts[b].tolist()))
        for b, replica in enumerate(here.replica.tolist())
    ]
