"""Momenta of a temperature, and the drift of a whole replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nnpcalc.md.random import STREAM_START, normals
from nnpcalc.md.state import MDState, per_atom, sum_per_system, thermal_scale, total_momentum
from nnpcalc.units import KB, VELOCITY_SQUARED_TO_ENERGY

#: Kinetic energy of the centre of mass, in units of k_B T, that counts as rounding.
DRIFT_TOLERANCE = 1e-6

Temperatures = float | Sequence[float] | Tensor


def temperatures(value: Temperatures, state: MDState) -> Tensor:
    """Temperatures [B] in K, from one for all replicas or one for each.

    Raises:
        ValueError: not numbers, finite and 0 or more, or another number of them than replicas.
    """
    try:
        given = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"temperatures must be numbers (K), not {value!r}") from error
    if len(given) not in (1, state.n_systems):
        raise ValueError(
            f"{len(given)} temperatures for {state.n_systems} replicas: give one, or one for each"
        )
    if not bool(((given >= 0) & torch.isfinite(given)).all()):
        raise ValueError(f"temperatures must be finite and not negative (K), not {given.tolist()}")
    return given.expand(state.n_systems).to(state.replica.device).clone()


def with_thermal_momenta(
    state: MDState, temperature: Temperatures, *, remove_drift: bool = True
) -> MDState:
    """Draw momenta from the Maxwell-Boltzmann distribution.

    Every component of p is normal with variance m k_B T. Without drift the total momentum is zero,
    which takes away three degrees of freedom; replicas with atoms held fixed keep theirs.

    Args:
        state: its seed and replicas say which numbers are drawn.
        temperature: K, one or one per replica.
        remove_drift: make the total momentum zero.
    """
    kelvin = temperatures(temperature, state)
    spread = torch.sqrt(thermal_scale(1.0) * per_atom(state, kelvin) * state.masses[:, None])
    draw = normals(state.seed, state.owner, state.place, 0, STREAM_START)[0]
    momenta = spread * draw
    if state.mobile is not None:
        momenta = momenta * state.mobile
    state = replace(state, momenta=momenta)
    return without_drift(state) if remove_drift else state


def without_drift(state: MDState) -> MDState:
    """The state with p - m P / M, P and M total momentum and mass, so that no replica drifts.

    A replica with atoms held fixed is left as it is.
    """
    total_mass = sum_per_system(state.masses, state.counts)
    velocity = total_momentum(state) / total_mass[:, None]
    velocity = torch.where(_holds_atoms(state)[:, None], 0.0, velocity)
    drift = velocity.index_select(0, state.atoms.system) * state.masses[:, None]
    return replace(state, momenta=state.momenta - drift)


def _holds_atoms(state: MDState) -> Tensor:
    """bool [B]: some atoms are held fixed, and the total momentum is not conserved."""
    if state.mobile is None:
        return torch.zeros_like(state.replica, dtype=torch.bool)
    return sum_per_system(state.mobile[:, 0], state.counts) < state.counts


def refuse_drift(state: MDState, kelvin: Tensor, integrator: str) -> None:
    """Refuse a replica that moves as a whole: a global thermostat would never stop it.

    Raises:
        ValueError: names the replica, its velocity and the remedy.
    """
    total_mass = sum_per_system(state.masses, state.counts)
    momentum = total_momentum(state)
    energy = 0.5 * VELOCITY_SQUARED_TO_ENERGY * (momentum * momentum).sum(1) / total_mass
    bad = ~_holds_atoms(state) & (energy > DRIFT_TOLERANCE * KB * kelvin.clamp(min=1.0))
    if bool(bad.any()):
        b = int(bad.to(torch.int64).argmax())
        speed = (momentum[b] / total_mass[b]).tolist()
        raise ValueError(
            f"replica {int(state.replica[b])} drifts as a whole with {speed} Å/fs, which "
            f"{integrator} conserves: remove it with nnpcalc.md.without_drift, or draw new momenta"
        )
