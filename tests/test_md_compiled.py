"""Steps without Python between them are single steps, bit for bit, and end where it is needed."""

import importlib

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from nnpcalc import md
from nnpcalc.md.compiled import several_steps
from nnpcalc.md.forcefield import ModelForceField

STEPS = 60
INTEGRATORS = [md.NVE(0.5), md.Langevin(0.5, 400.0, friction=0.01)]
runs = importlib.import_module("nnpcalc.md.run")


def molecules() -> list[Atoms]:
    held = molecule("CH3CH2OH")
    held.set_constraint(FixAtoms([0, 3]))
    return [held, molecule("NH3"), molecule("OH", info={"charge": -1})]


def crystal() -> list[Atoms]:
    atoms = bulk("Si", "diamond", 5.43, cubic=True)
    atoms.rattle(0.05, seed=1)
    return [atoms]


def run(structures, integrator, field, monkeypatch, single: bool) -> tuple[md.MDState, int]:
    """The last state, and how many steps were taken without Python."""
    taken = []

    def counted(state, *arguments):
        after = state if single else several_steps(state, *arguments)
        taken.append(after.step - state.step)
        return after

    monkeypatch.setattr(runs, "several_steps", counted)
    # the network knows no silicon crystal
    guard = md.Watchdog(min_distance=None, max_force=1e6, max_energy_jump=None)
    result = md.run(structures, field, integrator, STEPS, temperature=400.0, seed=1, watchdog=guard)
    return result.state, sum(taken)


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=["NVE", "Langevin"])
@pytest.mark.parametrize(
    ("structures", "dtype"),
    [(molecules, "float32"), (molecules, "float64"), (crystal, "float32")],
)
def test_the_numbers_are_those_of_single_steps(structures, dtype, integrator, monkeypatch):
    field = ModelForceField("tensornet-spice", dtype=dtype, device="cpu")
    several, taken = run(structures(), integrator, field, monkeypatch, single=False)
    single, _ = run(structures(), integrator, field, monkeypatch, single=True)
    assert taken > STEPS // 3
    for name in ("positions", "momenta", "forces", "energy"):
        assert torch.equal(getattr(several, name), getattr(single, name)), name
    assert several.step == single.step == STEPS
    assert torch.equal(integrator.conserved(several), integrator.conserved(single))


def start(atoms: Atoms, integrator=INTEGRATORS[0]) -> tuple[ModelForceField, md.MDState]:
    """A state after a few steps, which the field has seen."""
    field = ModelForceField("tensornet-spice", device="cpu")
    return field, md.run(atoms, field, integrator, 3, temperature=300.0, seed=1).state


def test_a_state_is_not_written_to():
    for integrator in INTEGRATORS:
        field, state = start(molecule("H2O"), integrator)
        tensors = [state.positions, state.momenta, state.forces, *state.atom_variables.values()]
        before = [tensor.clone() for tensor in tensors]
        assert several_steps(state, integrator, field, 5, 1e3).step > state.step
        assert all(map(torch.equal, tensors, before))


def test_coordinates_that_have_to_be_brought_back_are_left_to_python():
    far = molecule("NH3")
    far.positions += 63.9
    field, state = start(far)
    assert several_steps(state, INTEGRATORS[0], field, 5, 1e3) is state


def test_a_large_force_ends_it():
    field, state = start(molecule("H2O"))
    after = several_steps(state, INTEGRATORS[0], field, 50, 1e-3)
    assert after.step == state.step + 1
    assert float(after.forces.abs().max()) > 1e-3


def test_what_takes_python_is_left_to_it():
    field, state = start(molecule("H2O"))
    assert several_steps(state, md.Bussi(0.5, 300.0), field, 5, 1e3) is state
    assert several_steps(state, INTEGRATORS[0], lambda atoms, stress=False: None, 5, 1e3) is state
    committee = ModelForceField(["tensornet-spice", "tensornet-spice-2"], device="cpu")
    committee(state.atoms)
    assert several_steps(state, INTEGRATORS[0], committee, 5, 1e3) is state
    fresh = ModelForceField("tensornet-spice", device="cpu")  # which has no neighbors yet
    assert several_steps(state, INTEGRATORS[0], fresh, 5, 1e3) is state
    eager = ModelForceField("tensornet-spice", device="cpu", backend="eager")
    eager(state.atoms)
    assert several_steps(state, INTEGRATORS[0], eager, 5, 1e3) is state


def test_derived_classes_keep_what_they_override():
    class Other(md.NVE):
        pass

    class Field(ModelForceField):
        pass

    field, state = start(molecule("H2O"))
    assert several_steps(state, INTEGRATORS[0], field, 5, 1e3).step > state.step
    assert several_steps(state, Other(0.5), field, 5, 1e3) is state
    derived = Field("tensornet-spice", device="cpu")
    derived(state.atoms)
    assert several_steps(state, INTEGRATORS[0], derived, 5, 1e3) is state


def test_atoms_that_come_near_each_other_are_left_to_python():
    """ZBL acts on them."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.6]])
    field, state = start(atoms)
    towards = torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, -0.2]], dtype=torch.float64)
    state = md.state.changed(state, momenta=towards * state.masses[:, None])
    after = several_steps(state, INTEGRATORS[0], field, 50, 1e6)
    distance = float(np.linalg.norm(np.diff(after.positions.numpy(), axis=0)))
    assert after.step < state.step + 5 and distance > 0.45
