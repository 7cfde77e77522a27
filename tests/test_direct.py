"""Forces written out are those of autograd, and nothing of another state or molecule is kept."""

from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.backends import prepare
from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels.direct import DirectPotential
from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.terms import ZBL, AtomicEnergies, Coulomb, StateEnergy, SystemEnergy
from tiny_model import make_potential

TERMS = (
    AtomicEnergies({1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2041.0}), StateEnergy(1.0, 2.0, 0.5),
    SystemEnergy(3.0), ZBL(),
)  # fmt: skip


def both(terms=TERMS) -> tuple[Potential, DirectPotential]:
    """One network, differentiated by autograd and by hand."""
    core = TensorNetInference(make_potential().core.double().requires_grad_(False))
    assert DirectPotential.serves(core, terms)
    return Potential(core, terms, 100.0), DirectPotential(core, terms, 100.0)


def make_batch() -> AtomsBatch:
    """With atoms so near that ZBL acts, a charge, a spin, a crystal and an atom alone."""
    near = Atoms("OHH", [[0, 0, 0], [0, 0, 0.45], [0.9, 0, 0]], info={"charge": 1})
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=1)
    triplet = molecule("CH2_s3B1d", info={"spin": 3})
    return AtomsBatch.from_atoms([near, crystal, triplet, Atoms("O"), molecule("NH3")])


def assert_equal(found, expected) -> None:
    for name in ("energy", "energies", "forces", "stress"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, equal_nan=True)


def test_equals_autograd():
    by_autograd, direct = both()
    batch = make_batch()
    assert_equal(direct.evaluate(batch, stress=True), by_autograd.evaluate(batch, stress=True))
    far = AtomsBatch.from_atoms([molecule("NH3")])  # nothing for ZBL
    assert_equal(direct.evaluate(far, stress=True), by_autograd.evaluate(far, stress=True))
    alone = direct.evaluate(far, forces=False)
    assert alone.forces is None and torch.equal(alone.energy, direct.evaluate(far).energy)


def test_positions_with_a_graph_go_through_autograd():
    by_autograd, direct = both()
    batch = make_batch()
    neighbors = neighbor_list(batch, direct.cutoff)
    gradients = []
    for potential in (by_autograd, direct):
        positions = batch.positions.clone().requires_grad_(True)
        given = inputs(replace(batch, positions=positions), neighbors)
        output = potential(*given, compute_forces=False, compute_stress=False)
        (gradient,) = torch.autograd.grad(output["energy"].sum(), positions)
        gradients.append(gradient)
    assert torch.equal(*gradients)


def test_another_state_or_element_is_seen():
    by_autograd, direct = both()
    batch = make_batch()
    first = direct.evaluate(batch).energy
    ions = replace(batch, charge=batch.charge + 2)
    assert_equal(direct.evaluate(ions, stress=True), by_autograd.evaluate(ions, stress=True))
    assert torch.equal(direct.evaluate(batch).energy, first)
    batch.charge[:] += 2  # into the very tensor
    assert torch.equal(direct.evaluate(batch).energy, direct.evaluate(ions).energy)
    batch.numbers[batch.numbers == 7] = 6
    assert_equal(direct.evaluate(batch, stress=True), by_autograd.evaluate(batch, stress=True))
    with torch.inference_mode():  # tensors that do not count what is written into them
        kept = replace(make_batch(), positions=make_batch().positions)
        neighbors = neighbor_list(kept, direct.cutoff)
        energies = []
        for charge in (0, 1):
            kept.charge[:] = charge
            output = direct(*inputs(kept, neighbors), compute_forces=False, compute_stress=False)
            energies.append(output["energy"])
    assert not torch.equal(*energies)


def test_the_same_molecules_in_other_tensors_are_recognised(monkeypatch):
    _, direct = both()
    seen, of_atoms = [], direct.core.of_atoms
    monkeypatch.setattr(direct.core, "of_atoms", lambda *a: seen.append(1) or of_atoms(*a))
    first = direct.evaluate(make_batch())
    assert torch.equal(direct.evaluate(make_batch()).forces, first.forces) and len(seen) == 1
    batch = make_batch()
    direct.evaluate(batch)
    direct.evaluate(replace(batch, multiplicity=batch.multiplicity + 2))
    direct.evaluate(AtomsBatch.concatenate(batch.split()[:-1]))
    assert len(seen) == 3
    first = make_batch()
    direct.evaluate(first)  # what is kept refers to these tensors, which then change
    first.charge[:] += 1
    direct.evaluate(make_batch())
    assert len(seen) == 5


def test_who_gets_it():
    potential = make_potential()
    assert type(prepare(potential).program) is DirectPotential
    core = TensorNetInference(potential.core)
    assert not DirectPotential.serves(core, (ZBL(), Coulomb()))
    assert not DirectPotential.serves(potential.core, ())
    batch = AtomsBatch.from_atoms(molecule("H2O"), dtype=torch.float32)
    given = inputs(batch, neighbor_list(batch, potential.cutoff))
    with torch.no_grad(), pytest.raises(AssertionError, match="no_grad"):
        prepare(potential).program(*given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_system_has_the_same_bits_alone_and_in_any_batch(dtype):
    structures = [molecule(name) for name in ("CH3CH2OH", "H2O", "C6H6", "CH3CHO", "NH3")]
    structures[3].info["charge"] = -1
    program = prepare(make_potential(), dtype=dtype).program
    whole = program.evaluate(AtomsBatch.from_atoms(structures, dtype=dtype))
    first = 0
    for k, atoms in enumerate(structures):
        alone = program.evaluate(AtomsBatch.from_atoms([atoms], dtype=dtype))
        assert torch.equal(alone.energy[0], whole.energy[k])
        assert torch.equal(alone.forces, whole.forces[first : first + len(atoms)])
        first += len(atoms)
