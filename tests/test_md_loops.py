"""The compiled loops of a step against the tensor operations that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from md_fields import LennardJones, cluster, start
from nnpcalc import AtomsBatch, md
from nnpcalc.md import loops
from nnpcalc.md.integrators import Integrator
from nnpcalc.md.random import MASK, normal, normals, philox
from nnpcalc.md.state import changed
from nnpcalc.md.watchdog import _far_apart, _near


class Elsewhere(Tensor):
    """A tensor that says it is not on the CPU, so that tensor operations compute with it."""

    is_cpu = False


@pytest.mark.parametrize(
    "integrator",
    [md.NVE(1.0), md.Langevin(1.0, 300.0, friction=0.02), md.NoseHoover(1.0, 300.0)],
    ids=lambda integrator: type(integrator).__name__,
)
def test_a_step(integrator: Integrator) -> None:
    field = LennardJones()
    state = start([cluster(5), cluster(7)], field, integrator, temperature=300.0)
    elsewhere = changed(state, momenta=state.momenta.as_subclass(Elsewhere))
    found, expected = (integrator.step(s, field) for s in (state, elsewhere))
    assert type(found.momenta) is Tensor and type(expected.momenta) is Elsewhere
    names = ("positions", "momenta", "forces")
    values = [(getattr(found, name), getattr(expected, name)) for name in names]
    values += [(v, expected.atom_variables[k]) for k, v in found.atom_variables.items()]
    for value, other in values:
        size = float(value.abs().max())
        torch.testing.assert_close(value, other.as_subclass(Tensor), rtol=0, atol=2e-15 * size)


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) + 12345, (1 << 64) - 1])
def test_random_numbers(seed: int) -> None:
    """The same bits as the tensor operations, whose answers are published."""
    replica = torch.tensor([0] * 21 + [7] * 5 + [(1 << 32) - 1] * 3)
    atom = torch.arange(len(replica))
    for steps in (torch.arange(5), torch.tensor([(1 << 33) - 1, 1 << 33, (1 << 48) - 1])):
        for stream in (0, 1, 4095):
            many, block = steps[:, None, None], torch.arange(2)
            last = ((many >> 32) << 16) | (stream << 4) | block
            counter = (atom[:, None], replica[:, None], many & MASK, last)
            w0, w1, w2, w3 = philox(counter, (seed & MASK, seed >> 32))
            expected = torch.stack((normal(w0, w1), normal(w2, w3)), -1).flatten(2)[..., :3]
            assert torch.equal(normals(seed, replica, atom, steps, stream), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 5.1, -5.1])
def test_limits(bad: float) -> None:
    values, copy = np.linspace(-5.0, 5.0, 21).reshape(7, 3), np.zeros((8, 3), np.float32)
    assert loops.within(values, 5.0) and loops.copy_within(values, 5.0, copy)
    assert np.array_equal(copy[:7], values.astype(np.float32)) and not copy[7].any()
    for k in (0, 10, 20):
        broken = values.copy()
        broken.flat[k] = bad
        assert not loops.within(broken, 5.0) and not loops.copy_within(broken, 5.0, copy)


def test_far_apart_is_near_nothing() -> None:
    """Also where molecules of a batch lie in each other, which does not count."""
    rng, seen = np.random.default_rng(1), set()
    for _ in range(60):
        structures = [
            Atoms(rng.choice([1, 6, 17], n), rng.uniform(0, 4.0, (n, 3))) for n in (1, 3, 4)
        ]
        state = md.MDState.start(
            AtomsBatch.from_atoms(structures), torch.ones(8, dtype=torch.float64), seed=1
        )
        found = _far_apart(state, 0.6)
        assert found == (len(_near(state, 0.6)[1]) == 0)
        seen.add(found)
    assert seen == {True, False}


def test_forces_of_another_shape_are_refused() -> None:
    integrator, field = md.NVE(1.0), LennardJones()
    state = start(cluster(5), field, integrator, temperature=300.0)

    def short(atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        found = field(atoms, stress=stress)
        return md.Forces(found.energy, found.forces[:-1])

    with pytest.raises(ValueError, match="a row of three forces for every atom"):
        integrator.step(state, short)
