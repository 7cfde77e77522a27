"""The first state of a run, and whether a later one belongs to the same structures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def same_structures(
    structures: Any,
    state: MDState,
    frozen: Sequence[MDState],
    force_field: ForceField,
    replicas: Iterable[int] | None,
) -> None:
    """Refuse a checkpoint of other molecules than those given.

    Positions, cells and momenta have changed since the start; nothing else may.

    Raises:
        CheckpointError: names the replica and what is different of it.
    """
    saved = {k: v for part in (state, *frozen) for k, v in _signatures(part).items()}
    if isinstance(structures, MDState):
        given = _signatures(structures)
    else:
        listed = [structures] if isinstance(structures, Atoms) else list(structures)
        batch = batch_of(listed, force_field)
        start = MDState.start(
            batch,
            batch.positions.new_ones(batch.n_atoms),
            seed=0,
            mobile=mobile_atoms(listed),
            replica=_identities(replicas, batch),
        )
        given = _signatures(start)
    if given.keys() != saved.keys():
        raise CheckpointError(
            f"the checkpoint is of the replicas {_listed(saved)}, not {_listed(given)}: give the "
            "structures it had"
        )
    for replica, before in sorted(saved.items()):
        for name, value in before.items():
            now = given[replica][name]
            if now != value:
                raise CheckpointError(
                    f"replica {replica} of the checkpoint has {name} {value}, not {now}: give the "
                    "structures it had, in their order"
                )


def _listed(replicas: Iterable[int]) -> str:
    numbers = sorted(replicas)
    more = len(numbers) - 8
    return ", ".join(map(str, numbers[:8])) + (f" and {more} more" if more > 0 else "")


def _signatures(state: MDState) -> dict[int, dict[str, Any]]:
    """What a run cannot change, by the identity of the replica."""
    here, found = state.cpu(), {}
    for b, replica in enumerate(here.replica.tolist()):
        part = here.select([b])
        numbers, mobile = part.atoms.numbers.numpy(), part.mobile
        still = [] if mobile is None else torch.nonzero(mobile[:, 0] == 0)[:, 0].tolist()
        found[replica] = {
            "the elements": Atoms(numbers).get_chemical_formula("reduce"),
            "charge": int(part.atoms.charge[0]),
            "multiplicity": int(part.atoms.multiplicity[0]),
            "pbc": part.atoms.pbc[0].tolist(),
            "fixed atoms": still,
        }
    return found
