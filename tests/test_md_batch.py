"""A replica alone equals the same replica in any batch, bit for bit on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from md_fields import LennardJones, argon, assert_same_bits, cluster, molecules, start, steps
from nnpcalc import AtomsBatch, md
from nnpcalc.md.forcefield import as_force_field
from tiny_model import diamond, make_calculator, make_potential

KELVIN = 300.0


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


INTEGRATORS = {
    "NVE": lambda: md.NVE(1.0),
    "Langevin": lambda: md.Langevin(1.0, KELVIN, friction=0.02),
    "Bussi": lambda: md.Bussi(1.0, KELVIN, relaxation=20.0),
    "NoseHoover": lambda: md.NoseHoover(1.0, KELVIN, relaxation=50.0),
    "Respa": lambda: md.Respa(md.Langevin(0.5, KELVIN), LennardJones(0.005, 1.5, 6.0), 2),
    "CellRescaling": lambda: md.CellRescaling(1.0, KELVIN, 0.1, interval=2),
    "anisotropic": lambda: md.CellRescaling(1.0, KELVIN, 0.1, interval=2, anisotropic=True),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_one_of_64(name: str) -> None:
    field, integrator = LennardJones(), INTEGRATORS[name]()
    crystal = name in ("CellRescaling", "anisotropic")
    structures = [argon(2) if crystal else cluster(3 + k % 7) for k in range(64)]
    together = steps(start(structures, field, integrator, temperature=60.0), field, integrator, 12)
    for k in (0, 5, 63):
        single, own = INTEGRATORS[name](), LennardJones()
        alone = start(structures[k], own, single, temperature=60.0, replicas=[k])
        alone = steps(alone, own, single, 12)
        assert_same_bits(alone, together.select([k]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_one_of_64_with_a_network(dtype: str, backend: str, threads: None) -> None:
    """Molecules of different sizes and states, on the fused kernels and on the eager model."""
    if backend == "fused":
        pytest.importorskip("numba")
    count = 64 if backend == "fused" else 12
    options: dict[str, Any] = {"dtype": dtype, "backend": backend}
    structures = molecules(count)
    for atoms in structures[::5]:
        atoms.info.update(charge=1, spin=2)
    model = make_potential(channels=64 if backend == "fused" else 8)
    field, integrator = as_force_field(model, **options), md.Langevin(0.5, KELVIN)
    together = steps(start(structures, field, integrator), field, integrator, 3)
    for k in (0, 1, count - 1):
        own, single = as_force_field(model, **options), md.Langevin(0.5, KELVIN)
        alone = steps(start(structures[k], own, single, replicas=[k]), own, single, 3)
        assert_same_bits(alone, together.select([k]))


def test_padding_is_what_makes_it_so() -> None:
    """Without it the bits differ: the test above can fail."""
    pytest.importorskip("numba")
    field = as_force_field(make_potential(channels=64), dtype="float64", reproducible=False)
    structures = molecules(64)
    together = field(AtomsBatch.from_atoms(structures)).forces
    sizes = [len(atoms) for atoms in structures]
    alone = [field(AtomsBatch.from_atoms(atoms)).forces for atoms in structures]
    same = [torch.equal(a, b) for a, b in zip(together.split(sizes), alone, strict=True)]
    if all(same):
        pytest.skip("matrix products do not depend on the number of rows on this machine")


def test_forces_are_those_of_the_calculator() -> None:
    """Also of periodic structures, with stress, and far from the origin."""
    far = diamond()
    far.positions[0] += 30 * far.cell.array.sum(0)
    away = molecule("H2O")
    away.positions += [0.0, 0.0, 500.0]
    structures = [molecule("CH3OH"), diamond(), far, away]
    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-4)):
        calc = make_calculator(dtype=dtype)
        field = as_force_field(calc)
        batch = AtomsBatch.from_atoms(structures)
        found, first = field(batch, stress=True), 0
        assert found.forces.dtype == found.energy.dtype == torch.float64
        reference = make_calculator()
        for k, atoms in enumerate(structures):
            part = slice(first, first + len(atoms))
            first += len(atoms)
            atoms.calc = reference
            assert float(found.energy[k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-2)
            difference = found.forces[part].numpy() - atoms.get_forces()
            # float32 coordinates 500 Å from the origin would be wrong by 3e-5 Å
            assert np.abs(difference).max() < tolerance * max(1.0, np.abs(atoms.get_forces()).max())
            if atoms.pbc.all():
                stress = found.stress[k].numpy()  # type: ignore[index]
                assert np.abs(stress - atoms.get_stress(voigt=False)).max() < tolerance * 10


def test_new_cells_reach_the_model() -> None:
    field = as_force_field(make_calculator())
    batch = AtomsBatch.from_atoms(diamond())
    first = field(batch, stress=True)
    stretched = AtomsBatch(**{
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__},
        "cell": batch.cell * 1.02,
        "positions": batch.positions * 1.02,
    })  # fmt: skip
    atoms = diamond()
    atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    atoms.calc = make_calculator()
    assert float(field(stretched).energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert torch.equal(field(batch, stress=True).forces, first.forces)


def test_an_ensemble_knows_what_it_does_not_know() -> None:
    class Shifted(LennardJones):
        def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
            found = super().__call__(atoms, stress=stress)
            return md.Forces(found.energy + 1.0, found.forces * 1.5, found.stress)

    one, batch = LennardJones(), AtomsBatch.from_atoms([cluster(4), cluster(6)])
    same = md.Ensemble([one, LennardJones()])(batch)
    assert same.uncertainty is not None and float(same.uncertainty.max()) == 0.0
    assert torch.equal(same.forces, one(batch).forces)
    different = md.Ensemble([one, Shifted()])(batch)
    assert different.uncertainty is not None and different.uncertainty.shape == (2,)
    assert float(different.uncertainty.min()) > 0.0
    with pytest.raises(ValueError, match="two members or more"):
        md.Ensemble([one])


def test_what_is_no_force_field() -> None:
    with pytest.raises(ValueError, match="int is no force field"):
        as_force_field(3)
    with pytest.raises(ValueError, match="dtype: options of a model"):
        as_force_field(LennardJones(), dtype="float32")
    with pytest.raises(ValueError, match=r"atom 1 is Ar"):
        md.run(Atoms("OAr", [[0, 0, 0], [0, 0, 3]]), make_calculator(), md.NVE(1.0), 1)
