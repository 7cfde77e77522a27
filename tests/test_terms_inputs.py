"""What a potential shows to its terms and makes of charges: pair lists, cells, dipole moments."""

from __future__ import annotations

from typing import Dict, Optional

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from torch import Tensor, nn

from nnpcalc import NNPCalculator
from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.terms import AtomicEnergies, Coulomb, TermInputs
from nnpcalc.torchscript import torchscript_bytes, torchscript_from_bytes
from terms_tools import GivenCharges, charged_core, seen


class Recorder(nn.Module):
    """A term or a core that notes the pairs it is given."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.pairs: Tensor | None = None
        self.elements, self.conditions_on = (1, 6, 8), ()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *arguments: object) -> object:
        if len(arguments) == 1:
            (inputs,) = arguments
            assert isinstance(inputs, TermInputs)
            self.inputs = inputs
            return torch.zeros(inputs.numbers.shape[0])
        self.pairs = arguments[1]
        return {"energies": self.weight * arguments[3].new_zeros(arguments[0].shape[0])}


def test_everyone_gets_the_pairs_within_its_own_cutoff() -> None:
    core, terms = Recorder(3.0), tuple(Recorder(reach) for reach in (0.0, 3.0, 4.0, 5.5, 2.0))
    potential = Potential(core, terms)
    assert potential.cutoff == 5.5
    cell = bulk("C", "diamond", a=3.5)
    batch = AtomsBatch.from_atoms([molecule("CH3CH2OH"), cell], dtype=torch.float32)
    potential.evaluate(batch, stress=True)
    assert torch.equal(core.pairs, neighbor_list(batch, 3.0).pairs)
    for term in terms:
        expected = neighbor_list(batch, term.cutoff or 3.0)
        assert torch.equal(term.inputs.pairs, expected.pairs)
        assert torch.equal(term.inputs.shifts, expected.shifts)
        assert torch.allclose(term.inputs.vectors, expected.vectors)
        assert torch.allclose(term.inputs.distances, expected.distances)
        assert term.inputs.charges is None


def test_without_long_terms_the_list_is_the_cores() -> None:
    potential = Potential(Recorder(3.0), (AtomicEnergies({1: 0.0}), Recorder(2.5)))
    assert potential.cutoff == potential.core_cutoff == 3.0


def test_a_term_that_lacks_an_element_is_refused() -> None:
    term = Recorder(3.0)
    term.elements = (1, 8)
    with pytest.raises(ValueError, match=r"Recorder lacks the elements Z = \[6\]"):
        Potential(Recorder(3.0), (term,))


class Volume(nn.Module):
    """An energy of positions and the cell alone: 0.1 ln V and cosines of k r, k fixed in space."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, inputs: TermInputs) -> Tensor:
        volume = torch.linalg.det(inputs.cell).abs()
        return 0.1 * torch.log(volume)[inputs.system] + torch.cos(0.7 * inputs.positions).sum(1)


def test_positions_and_cells_carry_the_strain() -> None:
    """Forces and stress of a term that uses nothing but positions and cells."""
    torch.manual_seed(1)
    atoms = bulk("C", "diamond", a=3.5, cubic=True)
    atoms.rattle(0.1, seed=2)
    potential = Potential(Recorder(3.0), (Volume(),)).double()

    def energy(structure: Atoms) -> float:
        batch = AtomsBatch.from_atoms(structure)
        return float(potential.evaluate(batch, forces=False).energy)

    results = potential.evaluate(AtomsBatch.from_atoms(atoms), stress=True)
    h = 1e-4
    for a, b in ((0, 0), (1, 1), (0, 2)):
        values = []
        for sign in (1.0, -1.0):
            strain = np.eye(3)
            strain[a, b] += 0.5 * sign * h
            strain[b, a] += 0.5 * sign * h
            copied = atoms.copy()
            copied.set_cell(atoms.cell.array @ strain)
            copied.positions = atoms.positions @ strain
            values.append(energy(copied))
        slope = (values[0] - values[1]) / (2.0 * h) / atoms.cell.volume
        assert float(results.stress[0, a, b]) == pytest.approx(slope, abs=1e-7)
    expected = 0.7 * np.sin(0.7 * atoms.positions)
    assert np.allclose(results.forces.numpy(), expected, atol=1e-12)


def test_a_box_around_an_open_system_is_not_seen() -> None:
    potential = Potential(charged_core(), (Coulomb(),)).double()
    water, boxed = molecule("H2O"), molecule("H2O")
    boxed.center(vacuum=2.0)
    boxed.pbc = False
    a, b = (potential.evaluate(AtomsBatch.from_atoms(x)) for x in (water, boxed))
    assert float(a.energy) == pytest.approx(float(b.energy), abs=1e-10)
    assert torch.isfinite(b.dipole).all()


# --- charges and dipole moments ------------------------------------------------------------------


def test_dipole_moments_of_known_charges() -> None:
    water = molecule("H2O")
    q = np.array([-0.8, 0.4, 0.4])
    water.arrays["partial_charges"] = q
    far = water.copy()
    far.positions += (3.0, -5.0, 7.0)
    hydroxide = Atoms("OH", [(0.2, 0, 0), (0.2, 0, 1.0)], info={"charge": -1})
    hydroxide.arrays["partial_charges"] = np.array([-1.2, 0.2])
    crystal = bulk("C", "diamond", a=3.5)
    crystal.arrays["partial_charges"] = np.array([0.1, -0.1])
    potential = Potential(GivenCharges()).double()
    batch = AtomsBatch.from_atoms([water, far, hydroxide, crystal])
    results = potential.evaluate(batch)
    assert results.dipole.dtype == torch.float64
    expected = q @ water.positions
    assert results.dipole[:2].numpy() == pytest.approx(np.stack([expected, expected]), abs=1e-12)
    # about the centre of nuclear charge, (8 r_O + r_H) / 9, that is 1/9 Å from O
    assert results.dipole[2].tolist() == pytest.approx([0.0, 0.0, 0.2 + 1.0 / 9.0], abs=1e-12)
    assert torch.isnan(results.dipole[3]).all()
    assert results.charges[:3].tolist() == q.tolist()


def test_dipole_moments_can_be_trained() -> None:
    potential = Potential(GivenCharges()).double()
    water = molecule("H2O")
    water.arrays["partial_charges"] = np.array([-0.8, 0.4, 0.4])
    batch = AtomsBatch.from_atoms(water)
    arguments = inputs(batch, neighbor_list(batch, potential.cutoff))
    output = potential(*arguments, compute_stress=False, create_graph=True)
    (gradient,) = torch.autograd.grad(output["dipole"][0, 2], potential.core.scale)
    assert float(gradient) == pytest.approx(float(output["dipole"][0, 2].detach()))


class ChargedAtoms(GivenCharges):
    """Charges of -0.8 e on oxygen and 0.4 e on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions_on = ()

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        charges = 0.4 - 1.2 * (numbers == 8).to(self.scale.dtype)
        return {"energies": 0.0 * charges, "charges": self.scale * charges}


@pytest.fixture
def calc() -> NNPCalculator:
    return NNPCalculator(Potential(ChargedAtoms(), (Coulomb(),)), dtype="float64", device="cpu")


def test_the_calculator_has_charges_and_dipole_moments(calc: NNPCalculator) -> None:
    water = molecule("H2O")
    water.calc = calc
    assert water.get_charges() == pytest.approx([-0.8, 0.4, 0.4])
    expected = np.array([-0.8, 0.4, 0.4]) @ water.positions
    assert water.get_dipole_moment() == pytest.approx(expected)
    assert "dipole" in calc.implemented_properties
    (result,) = calc.evaluate([water], ["energy", "dipole"])
    assert result.dipole == pytest.approx(expected)


def test_the_dipole_moment_of_a_crystal_is_refused(calc: NNPCalculator) -> None:
    ice = molecule("H2O")
    ice.center(vacuum=2.0)
    ice.pbc = True
    ice.calc = calc
    assert np.isfinite(ice.get_forces()).all()
    assert "dipole" not in calc.results
    with pytest.raises(PropertyNotImplementedError, match="depends on the choice of its cell"):
        ice.get_dipole_moment()
    with pytest.raises(PropertyNotImplementedError, match="set pbc to False"):
        calc.evaluate([molecule("H2O"), ice], ["dipole"])
    both = calc.evaluate([molecule("H2O"), ice])
    assert both[0].dipole is not None and both[1].dipole is None


def test_partly_periodic_systems_and_ewald(calc: NNPCalculator) -> None:
    slab = molecule("H2O")
    slab.center(vacuum=2.0)
    slab.pbc = (True, True, False)
    slab.calc = calc
    with pytest.raises(ValueError, match=r"H2O.*pbc \[True, True, False\].*Ewald sum"):
        slab.get_potential_energy()
    with pytest.raises(ValueError, match=r"system 1 \(H2O\).*with vacuum between the images"):
        calc.evaluate([molecule("H2O"), slab])
    batch = AtomsBatch.from_atoms([molecule("H2O"), slab])
    with pytest.raises(ValueError, match="system 1 is periodic in some directions only"):
        calc.potential.evaluate(batch)
    other = Potential(ChargedAtoms(), (Coulomb(periodic="dsf"),)).double()
    assert torch.isfinite(other.evaluate(batch).energy).all()


def test_inputs_of_a_term_are_what_the_tools_say() -> None:
    """The helper of these tests agrees with what a potential hands over."""
    term = Recorder(5.0)
    atoms = [molecule("H2O"), bulk("C", "diamond", a=3.5)]
    Potential(Recorder(3.0), (term,)).double().evaluate(AtomsBatch.from_atoms(atoms))
    for name, value in seen(term, atoms)._asdict().items():
        found = getattr(term.inputs, name)
        assert found is None if value is None else torch.allclose(found, value), name


def test_an_exported_program_knows_what_it_needs() -> None:
    potential = Potential(charged_core(), (Coulomb(cutoff=6.0),))
    card = {"cutoff": 6.0, "elements": [1, 6, 8], "charges": [0], "multiplicities": [1]}
    data = torchscript_bytes(potential, card, torch.float64)
    program = torchscript_from_bytes(data, "the program")
    assert program.full_periodicity and program.cutoff == 6.0
    slab = molecule("H2O")
    slab.center(vacuum=2.0)
    slab.pbc = (True, False, True)
    with pytest.raises(ValueError, match="periodic in some directions only"):
        program.evaluate(AtomsBatch.from_atoms(slab))
    slab.pbc = True
    batch = AtomsBatch.from_atoms([molecule("H2O"), slab])
    found, expected = program.evaluate(batch), potential.double().evaluate(batch)
    assert torch.allclose(found.energy, expected.energy, rtol=0.0, atol=1e-12)
    assert torch.allclose(found.dipole[0], expected.dipole[0], rtol=0.0, atol=1e-12)
