"""`check_potential`: the physics and the engineering that every potential must satisfy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.testing.derivatives import (
    check_cutoff,
    check_forces,
    check_second_derivatives,
    check_stress,
)
from nnpcalc.testing.probe import Probe, array
from nnpcalc.testing.structures import random_rotation, sample_structures
from nnpcalc.testing.tolerances import tolerance

FAR = 40.0  # Å


# --- symmetries ----------------------------------------------------------------------------------


def check_rotation(p: Probe) -> None:
    """Energies do not change, forces and stress turn along; reflections too unless SO(3)."""
    rng = p.rng
    rotations = {"rotation": random_rotation(rng), "other rotation": random_rotation(rng)}
    if getattr(p.potential.core.config, "equivariance", "O(3)") == "O(3)":
        rotations["reflection"] = -random_rotation(rng)
    for (kind, q), (name, atoms) in product(rotations.items(), p.structures.items()):
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ q)
        turned.positions = atoms.positions @ q
        crystal = bool(atoms.pbc.all())
        before, after = p.results(atoms, stress=crystal), p.results(turned, stress=crystal)
        p.close(f"energy of the {name} after a {kind}", after.energies, before.energies, "rotation")
        p.close(
            f"forces of the {name} after a {kind}",
            after.forces, array(before.forces) @ q, "rotation",
        )  # fmt: skip
        if crystal:
            expected = q.T @ array(before.stress) @ q
            p.close(f"stress of the {name} after a {kind}", after.stress, expected, "rotation")


def check_permutation(p: Probe) -> None:
    """The order of the atoms has no meaning."""
    for name, atoms in p.structures.items():
        order = p.rng.permutation(len(atoms))
        before, after = p.results(atoms), p.results(atoms[order])
        for key in ("energies", "forces"):
            found, expected = getattr(after, key), array(getattr(before, key))[order]
            p.close(f"{key} of the {name} with atoms reordered", found, expected, "permutation")


def check_translation(p: Probe) -> None:
    """Nothing changes when all atoms move, or one of a crystal moves by lattice vectors."""
    for name, atoms in p.structures.items():
        moved = atoms.copy()
        moved.positions += (1.7, -2.9, 0.6)
        for d, count in zip(range(3), (3, -2, 1), strict=True):
            if atoms.pbc[d]:
                moved.positions[-1] += count * atoms.cell.array[d]
        before, after = p.results(atoms), p.results(moved)
        for key in ("energies", "forces"):
            found, expected = getattr(after, key), getattr(before, key)
            p.close(f"{key} of the {name} after a translation", found, expected, "translation")


def check_momentum(p: Probe) -> None:
    """Forces sum to zero; in vacuum, so do torques."""
    for name, atoms in p.structures.items():
        forces = array(p.results(atoms).forces)
        p.close(f"sum of the forces of the {name}", forces.sum(0), np.zeros(3), "momentum")
        if not atoms.pbc.any():
            torque = np.cross(atoms.positions, forces).sum(0)
            p.close(f"torque of the {name}", torque, np.zeros(3), "momentum")


# --- systems and batches -------------------------------------------------------------------------


def check_batch(p: Probe) -> None:
    """A system gives the same results alone and among others, in any order."""
    atom = p.structures["atom"]
    pair = atom + atom
    pair.info.clear()
    pair.positions[1] = (3.0 * p.potential.cutoff, 0.0, 0.0)
    systems = [*p.structures.values(), pair, Atoms()]
    for order in (range(len(systems)), p.rng.permutation(len(systems))):
        chosen = [systems[k] for k in order]
        together, row = p.results(*chosen, stress=True), 0
        for k, atoms in enumerate(chosen):
            rows = slice(row, row + len(atoms))
            row += len(atoms)
            alone = p.results(atoms, stress=True)
            name = f"{atoms.get_chemical_formula() or 'empty system'} in a batch"
            p.close(f"energy of {name}", together.energy[k], alone.energy[0], "batch")
            p.close(f"forces of {name}", array(together.forces)[rows], alone.forces, "batch")
            if atoms.pbc.all():
                found, expected = array(together.stress)[k], array(alone.stress)[0]
                p.close(f"stress of {name}", found, expected, "batch")


def check_isolation(p: Probe) -> None:
    """Systems of a batch do not see each other: not one bit changes when another one moves."""
    moving, resting = p.structures["ion"], p.structures["molecule"]
    moved = moving.copy()
    moved.positions[0] += (0.01, -0.02, 0.015)
    n = len(resting)
    before, after = p.results(resting, moving), p.results(resting, moved)
    for key in ("energies", "forces"):
        found, expected = array(getattr(after, key))[:n], array(getattr(before, key))[:n]
        if p.potential.device.type == "cpu":
            deviation = float(np.abs(found - expected).max())
            assert deviation == 0.0, (
                f"{key} of a system change by {deviation:.2e} when another system of the batch "
                "moves; they must not change at all"
            )
        p.close(f"{key} when another system moves", found, expected, "batch")


def check_size_consistency(p: Probe) -> None:
    """Two neutral systems far apart do not feel how far; they have the sum of their energies.

    The second half is left out for a core that says `additive = False`: one that shares out a
    charge over all atoms of a system.
    """
    a = p.structures["molecule"]
    b = a[p.rng.permutation(len(a))]
    b.positions *= 1.05
    far = FAR + 2.0 * p.potential.cutoff
    b.positions += (far, 0.0, 0.0)
    farther = b.copy()
    farther.positions += (far, 0.0, 0.0)
    e = p.energies([a + b, a + farther, a, b])
    p.close("energy of two molecules far apart and farther", e[1], e[0], "size consistency")
    if getattr(p.potential.core, "additive", True):
        p.close("energy of two molecules far apart", e[0], e[2] + e[3], "size consistency")


def check_supercell(p: Probe) -> None:
    """A doubled cell has the same energies and forces, also if it is smaller than the cutoff."""
    for name in ("crystal", "layer"):
        if name not in p.structures:
            continue
        atoms = p.structures[name]
        for repeats in ((2, 1, 1), (1, 2, 1)):
            single, double = p.results(atoms), p.results(atoms.repeat(repeats))
            for key in ("energies", "forces"):
                expected = np.concatenate([array(getattr(single, key))] * 2)
                p.close(f"{key} of the {name} repeated {repeats}", getattr(double, key), expected,
                        "supercell")  # fmt: skip


def check_atom(p: Probe) -> None:
    """A lone atom has an energy and no force; nothing has neither."""
    alone = p.structures["atom"]
    elsewhere = alone.copy()
    elsewhere.positions += 5.0
    here, there = p.results(alone), p.results(elsewhere)
    p.close("energy of an atom elsewhere", there.energy, here.energy, "batch")
    assert not array(here.forces).any(), f"a lone atom has the force {array(here.forces)}"
    nothing = p.results(Atoms())
    assert array(nothing.energy).tolist() == [0.0], "the energy of no atoms is not 0"
    assert nothing.forces is not None
    assert nothing.forces.shape == (0, 3), "the forces of no atoms are not [0, 3]"


# --- what the energy depends on ------------------------------------------------------------------


def check_elements(p: Probe) -> None:
    """An atom's energy depends on what element its neighbour is."""
    elements = sorted(p.potential.elements)[:12]
    if len(elements) < 2:
        return
    length = 0.5 * p.potential.cutoff  # beyond the reach of a repulsion
    systems = []
    for z in elements:
        atoms = Atoms([elements[0], z], [(0, 0, 0), (0.0, 0.0, length)])
        atoms.info["charge"] = sum(atoms.numbers) % 2
        atoms.arrays["partial_charges"] = np.array([0.1, -0.1])
        systems.append(atoms)
    # one state for all, or it would tell the elements apart
    batch = p.batch(*systems)
    batch = replace(
        batch,
        charge=torch.zeros_like(batch.charge),
        multiplicity=torch.ones_like(batch.multiplicity),
    )
    energies = array(p.potential.evaluate(batch, forces=False).energies)[::2]
    order = np.argsort(energies)
    gaps = np.diff(energies[order])
    k = int(gaps.argmin())
    assert gaps[k] > tolerance("sensitivity", p.dtype), (
        f"an atom's energy is the same beside Z={elements[order[k]]} and Z={elements[order[k + 1]]}"
        f" (difference {gaps[k]:.1e} eV)"
    )


def check_conditions(p: Probe) -> None:
    """The energy depends on the charge, multiplicity, ... that are declared, and on no other."""
    core: Any = p.potential.core
    declared = set(core.conditions_on)
    for term in p.potential.terms:
        declared |= set(getattr(term, "conditions_on", ()))
    batch = p.batch(p.structures["molecule"])
    given = batch.partial_charges
    assert given is not None, "the sample molecule has no partial charges"
    variants = {
        "charge": replace(batch, charge=batch.charge + 1),
        "multiplicity": replace(batch, multiplicity=batch.multiplicity + 2),
        "partial_charges": replace(batch, partial_charges=given.flip(0) + 0.05),
    }
    before = array(p.potential.evaluate(batch, forces=False).energy)[0]
    for name, changed in variants.items():
        after = array(p.potential.evaluate(changed, forces=False).energy)[0]
        difference = abs(after - before)
        if name in declared:
            assert difference > tolerance("sensitivity", p.dtype), (
                f"the {name} is declared in conditions_on but changes the energy by "
                f"{difference:.1e} eV only"
            )
        else:
            assert difference == 0.0, (
                f"the {name} changes the energy by {difference:.1e} eV but is not declared in "
                "conditions_on"
            )


# --- other routes to the same numbers ------------------------------------------------------------


def check_torchscript(p: Probe) -> None:
    """Compiled to TorchScript, the potential returns the same."""
    batch = p.batch(*p.structures.values())
    arguments = inputs(batch, neighbor_list(batch, p.potential.cutoff))
    expected = p.potential(*arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program: Any = torch.jit.script(copy.deepcopy(p.potential))
    for run in range(3):  # the compiler replaces the program after the first runs
        found = program(*arguments)
        assert set(found) == set(expected), f"TorchScript returns {sorted(found)}"
        for key, value in expected.items():
            defined = array(value)[np.isfinite(array(value))]
            compiled = array(found[key])[np.isfinite(array(value))]
            p.close(f"{key} in TorchScript (run {run + 1})", compiled, defined, "torchscript")


def check_precision(p: Probe) -> None:
    """Both dtypes are honoured from end to end and agree; energies are float64 in either."""
    atoms = p.structures["molecule"]
    found = {}
    for dtype in (torch.float64, torch.float32):
        potential = copy.deepcopy(p.potential).to(dtype)
        results = potential.evaluate(
            AtomsBatch.from_atoms(atoms, dtype=dtype, device=p.potential.device)
        )
        assert results.forces is not None
        assert results.forces.dtype == dtype, f"a {dtype} model returns {results.forces.dtype}"
        assert results.energy.dtype == torch.float64, "energies are not summed in float64"
        found[dtype] = array(results.forces), array(results.energies)
    (f64, e64), (f32, e32) = found[torch.float64], found[torch.float32]
    p.close("forces in float32 against float64", f32, f64, "float32")
    p.close("energies in float32 against float64", e32, e64, "float32")
    if np.abs(f64).max() > 0.0:
        assert (f32 != f64).any(), "float32 and float64 give the same forces: one is not honoured"


#: Name of each check of `check_potential`.
POTENTIAL_CHECKS: dict[str, Callable[[Probe], None]] = {
    "rotation": check_rotation,
    "permutation": check_permutation,
    "translation": check_translation,
    "momentum": check_momentum,
    "forces": check_forces,
    "stress": check_stress,
    "second derivatives": check_second_derivatives,
    "batch": check_batch,
    "isolation": check_isolation,
    "size consistency": check_size_consistency,
    "supercell": check_supercell,
    "atom": check_atom,
    "cutoff": check_cutoff,
    "elements": check_elements,
    "conditions": check_conditions,
    "torchscript": check_torchscript,
    "precision": check_precision,
}

#: Checks that are repeated in float32, with its tolerances.
SINGLE_PRECISION = ("rotation", "permutation", "translation", "momentum", "batch", "torchscript")


def check_potential(
    potential: Potential,
    *,
    checks: Iterable[str] | None = None,
    structures: Mapping[str, Atoms] | None = None,
    seed: int = 0,
) -> None:
    """Check that a potential is one: symmetric, smooth, conservative, extensive, differentiable.

    The potential itself is not changed; copies in float64 and float32 are checked on its device,
    with random or trained weights alike.

    Args:
        potential: what to check.
        checks: names from `POTENTIAL_CHECKS`; all by default.
        structures: as `sample_structures` makes them, of elements the potential knows.
        seed: of the random rotations, orders and default structures.

    Raises:
        AssertionError: names every violated property with the numbers found and allowed.
    """
    names = list(POTENTIAL_CHECKS if checks is None else checks)
    unknown = sorted(set(names) - set(POTENTIAL_CHECKS))
    if unknown:
        raise ValueError(f"no check is called {unknown[0]!r}; they are {list(POTENTIAL_CHECKS)}")
    if structures is None:
        structures = sample_structures(potential.elements, seed)
    failures = []
    for dtype in (torch.float64, torch.float32):
        copied = copy.deepcopy(potential).to(dtype).eval().requires_grad_(False)
        probe = Probe(copied, structures, seed)
        for name in names:
            if dtype == torch.float32 and name not in SINGLE_PRECISION:
                continue
            try:
                POTENTIAL_CHECKS[name](probe)
            except AssertionError as error:
                failures.append(f"{name}: {error}")
            except Exception as error:  # a potential may break in any way
                failures.append(f"{name}: raised {type(error).__name__}: {error}")
    if failures:
        listed = "\n  ".join(failures)
        raise AssertionError(f"the potential violates {len(failures)} checks:\n  {listed}")
