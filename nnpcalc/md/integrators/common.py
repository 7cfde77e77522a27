"""What all integrators share: the interface, one force evaluation, checks of their settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nnpcalc.md import loops
from nnpcalc.md.forcefield import ForceField, describe
from nnpcalc.md.state import MDState, changed, degrees_of_freedom, kinetic_energy
from nnpcalc.units import FORCE_TO_ACCELERATION


class Integrator(Protocol):
    """Settings in a frozen dataclass, and three functions of a state.

    `init` computes the forces and adds the integrator's variables; `step` returns the state one
    time step later and the same numbers for the same state, always; `conserved` is a quantity
    [B] in eV that exact dynamics would keep, or None.
    """

    @property
    def timestep(self) -> float:
        """fs."""
        ...

    def init(self, state: MDState, force_field: ForceField) -> MDState: ...

    def step(self, state: MDState, force_field: ForceField) -> MDState: ...

    def conserved(self, state: MDState) -> Tensor | None: ...


def evaluate(state: MDState, force_field: ForceField, *, stress: bool = False) -> MDState:
    """The state with the energy and forces of its positions."""
    return arrived(state, state.positions, state.momenta, 0.0, force_field, stress=stress)


def arrived(
    state: MDState,
    positions: Tensor,
    momenta: Tensor,
    kick: float,
    force_field: ForceField,
    *,
    stress: bool = False,
    **fields: Any,
) -> MDState:
    """The state at other positions, with their energy and forces, after a last kick by these.

    Args:
        positions: [N, 3], Å.
        momenta: [N, 3], amu Å/fs, before the kick.
        kick: its time, fs.
        fields: further fields of the state.
    """
    atoms = changed(state.atoms, positions=positions)
    found = force_field(atoms, stress=stress)
    forces = found.forces.detach() if found.forces.requires_grad else found.forces
    if state.mobile is not None:
        forces = forces * state.mobile
    if kick:
        momenta = kicked(momenta, forces, kick)
    spreads = (("uncertainty", found.uncertainty), ("energy_uncertainty", found.energy_uncertainty))
    known = {name: value for name, value in spreads if value is not None}
    if known:
        fields["system_variables"] = {**state.system_variables, **known}
    return changed(
        state,
        atoms=atoms,
        momenta=momenta,
        forces=forces,
        energy=found.energy,
        stress=found.stress if stress else None,
        **fields,
    )


def begin(state: MDState, *, conserves_momentum: bool) -> MDState:
    """The state with the degrees of freedom that an integrator gives it."""
    degrees = degrees_of_freedom(state.counts, state.mobile, conserved_momentum=conserves_momentum)
    return changed(state, degrees=degrees)


def kicked(momenta: Tensor, forces: Tensor, time: float) -> Tensor:
    """p + F t: momenta [N, 3] in amu Å/fs, forces in eV/Å, time in fs."""
    if momenta.is_cpu:
        p = momenta.numpy()
        out = np.empty_like(p)
        loops.kick(p, forces.numpy(), time * FORCE_TO_ACCELERATION, out)
        return torch.from_numpy(out)
    return torch.add(momenta, forces, alpha=time * FORCE_TO_ACCELERATION)


def drifted(state: MDState, positions: Tensor, momenta: Tensor, time: float) -> Tensor:
    """x + p t / m: positions [N, 3] in Å, time in fs."""
    return torch.addcmul(positions, momenta, state.inverse_masses, value=time)


def kicked_and_drifted(state: MDState, kick: float, drift: float) -> tuple[Tensor, Tensor]:
    """Momenta after a kick by the forces, and positions after a drift with these; times in fs."""
    momenta, positions = state.momenta, state.atoms.positions
    if momenta.is_cpu:
        p, w = momenta.numpy(), state.inverse_masses.numpy()
        out = np.empty((2, len(p), 3))
        loops.kick_and_drift(
            p, state.forces.numpy(), positions.numpy(), w, kick * FORCE_TO_ACCELERATION, drift, out
        )
        return torch.from_numpy(out[0]), torch.from_numpy(out[1])
    momenta = kicked(momenta, state.forces, kick)
    return momenta, drifted(state, positions, momenta, drift)


def total_energy(state: MDState) -> Tensor:
    """Kinetic and potential energy [B], eV."""
    return state.energy + kinetic_energy(state)


def rowwise(function: Callable[..., tuple[Any, ...]], *columns: Tensor) -> list[Tensor]:
    """Apply a function of a few numbers to every row of tensors [B] or [B, M].

    On the CPU with Python's numbers, one replica after the other: a tensor operation on one number
    costs a hundred times more. Elsewhere with all rows at once.

    Args:
        function: (math or torch, number or list of M numbers, ...) -> as many results of this kind.
        columns: float64.

    Raises:
        ValueError: a number beyond all bounds.
    """
    if columns[0].device.type != "cpu":
        lists = [c if c.dim() == 1 else c.unbind(1) for c in columns]
        found = function(torch, *lists)
        return [torch.stack(r, 1) if isinstance(r, list) else r for r in found]
    try:
        rows = zip(*(column.tolist() for column in columns), strict=True)
        results = [function(math, *row) for row in rows]
    except ArithmeticError as error:
        raise ValueError(
            f"the thermostat finds momenta beyond all bounds ({error}): the simulation has diverged"
        ) from error
    return [torch.tensor(r, dtype=torch.float64) for r in zip(*results, strict=True)]


def check_positive(**values: float) -> None:
    """Refuse settings that are not finite and positive."""
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, not {value!r}")


def check_degrees(state: MDState, integrator: str) -> None:
    """Refuse replicas that have no degree of freedom for a global thermostat to act on."""
    bad = state.degrees < 1
    if bool(bad.any()):
        b = int(bad.to(torch.int64).argmax())
        raise ValueError(
            f"replica {int(state.replica[b])} has {int(state.counts[b])} atom and no degree of "
            f"freedom besides its drift, which {integrator} leaves alone: use Langevin"
        )


def check_moving(state: MDState, integrator: str) -> None:
    """Refuse replicas at rest where an integrator can only rescale momenta."""
    bad = ~(kinetic_energy(state) > 0)
    if bool(bad.any()):
        b = int(bad.to(torch.int64).argmax())
        raise ValueError(
            f"replica {int(state.replica[b])} is at rest, and {integrator} only rescales momenta: "
            "draw some with nnpcalc.md.with_thermal_momenta"
        )


def settings(integrator: Any) -> dict[str, Any]:
    """An integrator's name and settings as plain JSON, to be kept and compared."""
    kept: dict[str, Any] = {"name": type(integrator).__name__}
    if not is_dataclass(integrator):
        return kept
    for item in fields(integrator):
        if not item.init:
            continue
        value = getattr(integrator, item.name)
        if is_dataclass(value):
            kept[item.name] = settings(value)
        elif callable(value):
            kept[item.name] = describe(value)
        elif isinstance(value, Tensor):
            kept[item.name] = value.tolist()
        else:
            kept[item.name] = list(value) if isinstance(value, (tuple, list)) else value
    return kept
