"""Many steps of dynamics in one compiled program, on the CPU.

At 20 atoms, what Python does between two steps takes a third of a step's time. As long as nothing
needs Python (a new neighbor list, a term that sees a pair, a force beyond the limit), steps are
taken one after the other without it. Each number is that of single steps, bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from nnpcalc.kernels.inference_arrays import OfAtoms
from nnpcalc.kernels.inference_step import Geometry, evaluate
from nnpcalc.kernels.programs import composed
from nnpcalc.md.loops import bath, copy_within, kick, kick_and_drift, within
from nnpcalc.md.state import MDState, changed
from nnpcalc.neighbors.held import Candidates, closer
from nnpcalc.neighbors.pairs import OVERLAP

#: Atoms times steps of one call: a tenth of a second, for signals are heard in between.
ATOM_STEPS = 3000


class Plan(NamedTuple):
    """An integrator's step: B, A and perhaps O and A, new forces, and B.

    Attributes:
        kick, drift: of momenta by forces, in fs times what turns these into amu Å/fs^2; and of
            positions by velocities, fs.
        keep, half: c of O, and what turns p^2 / m into energy.
        spread, noise: of O, [N, 1] and [S, N, 3], for S steps; no rows without O.
        heat: [N, 3], eV, no rows without O.
    """

    kick: float
    drift: float
    keep: float
    half: float
    spread: np.ndarray
    noise: np.ndarray
    heat: np.ndarray


class Field(NamedTuple):
    """A potential of `nnpcalc.kernels.direct` for one batch.

    Attributes:
        size: elements of its features.
        net, atoms, memory, scale: for `evaluate`.
        constants: energies of the atoms that do not depend on positions [N], eV.
        reach: Å; pairs nearer than the sum of their atoms' are left to Python [N].
        cell, system: of the batch, in the network's precision.
        held: candidates of the neighbor list.
        limit: Å; larger coordinates are left to Python.
    """

    size: int
    net: Any
    atoms: OfAtoms
    memory: Any
    scale: float
    constants: np.ndarray
    reach: np.ndarray
    cell: np.ndarray
    system: np.ndarray
    held: Candidates
    limit: float


@composed
def _advance(
    net, atoms, memory, scale, constants, reach, cell, system, held, limit, plan, weights, mobile,
    max_force, steps, positions, momenta, forces, energies,
):  # fmt: skip
    """Take up to so many steps; positions, momenta, forces, plan.heat and energies are updated.

    Returns:
        The number of steps taken.
    """
    n_atoms, n_candidates = positions.shape[0], held.pairs.shape[1]
    ends, shifts = np.empty(2 * n_candidates, np.int64), np.empty((n_candidates, 3), np.int64)
    vectors = np.empty((n_candidates, 3), held.translations.dtype)
    distances = np.empty(n_candidates, held.translations.dtype)
    single, rounded = np.empty((n_atoms, 3), cell.dtype), np.empty((n_atoms, 3), cell.dtype)
    moved, sums = np.empty((3, n_atoms, 3)), np.empty((n_atoms, 3))
    new_energies, virial = np.empty(n_atoms), np.empty((0, 3, 3))
    for step in range(steps):
        if plan.noise.shape[0]:
            bath(
                momenta, forces, positions, weights, plan.spread, plan.noise[step], plan.heat,
                plan.kick, plan.drift, plan.keep, plan.half, moved,
            )  # fmt: skip
        else:
            kick_and_drift(momenta, forces, positions, weights, plan.kick, plan.drift, moved[:2])
        if not copy_within(moved[1], limit, single):
            return step
        n, shortest = closer(single, held, ends, shifts, vectors, distances)
        if n < 0 or shortest < OVERLAP:
            return step
        new_energies[:] = constants
        sums[:] = 0.0
        pairs = ends[: 2 * n].reshape(2, n)
        where = Geometry(single, cell, system, pairs, shifts[:n], reach)
        if evaluate(net, atoms, where, memory, scale, new_energies, sums, virial)[2]:
            return step
        rounded[:] = sums
        for k in range(n_atoms):
            for a in range(3):
                forces[k, a] = rounded[k, a] * mobile[k, 0]
        positions[:] = moved[1]
        kick(moved[0], forces, plan.kick, momenta)
        energies[:] = new_energies
        if plan.noise.shape[0]:
            plan.heat[:] = moved[2]
        if not within(forces, max_force):
            return step + 1
    return steps


def several_steps(
    state: MDState, integrator: Any, force_field: Any, steps: int, max_force: float
) -> MDState:
    """The state up to so many steps later; the same state if the next step is one for Python.

    Args:
        state: with the forces of its positions.
        integrator: with a method ``plan`` that returns one, or it is left to Python.
        force_field: with a method ``compiled_field`` that returns one, or it is left to Python.
        steps: at most.
        max_force: eV/Å; the first step with a larger force is the last.
    """
    if not (hasattr(integrator, "plan") and hasattr(force_field, "compiled_field")):
        return state
    steps = min(steps, max(1, ATOM_STEPS // max(1, len(state.masses))))
    field = force_field.compiled_field(state.atoms) if steps > 1 else None
    if field is None:
        return state
    plan = integrator.plan(state, steps)
    if plan is None:
        return state
    if plan.noise.shape[0]:
        steps = min(steps, plan.noise.shape[0])
    mobile = np.ones((len(state.masses), 1)) if state.mobile is None else state.mobile.numpy()
    positions, momenta, forces = (
        tensor.numpy().copy() for tensor in (state.positions, state.momenta, state.forces)
    )
    energies = np.empty(len(positions))
    advance = _advance.parallel if evaluate.prefers_several(field.size) else _advance.serial
    done = advance(
        *field[1:], plan, state.inverse_masses.numpy(), np.asarray(mobile, np.float64),
        max_force, steps, positions, momenta, forces, energies,
    )  # fmt: skip
    if not done:
        return state
    energy = torch.zeros(state.n_systems, dtype=torch.float64)
    energy.index_add_(0, state.atoms.system, torch.from_numpy(energies))
    variables = state.atom_variables
    if plan.noise.shape[0]:
        variables = {**variables, "heat": torch.from_numpy(plan.heat)}
    return changed(
        state,
        atoms=changed(state.atoms, positions=torch.from_numpy(positions)),
        momenta=torch.from_numpy(momenta),
        forces=torch.from_numpy(forces),
        energy=energy,
        stress=None,
        step=state.step + done,
        atom_variables=variables,
    )
