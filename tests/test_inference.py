"""The hand-written derivative of the fast path is that of the readable network."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels import programs
from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.terms import ZBL

TABLE_ERROR = 1e-7  # of energies (eV) and forces (eV/Å) of order 1 with 2048 knots


def make_core(**options) -> TensorNet:
    torch.manual_seed(3)
    settings = {"channels": 8, "layers": 2, "radial_functions": 12, "cutoff": 4.5, **options}
    core = TensorNet(TensorNetConfig(**settings)).to(torch.float64)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "mix" in name:  # random networks are nearly linear: make every stage count
                parameter.mul_(3.0)
    return core.requires_grad_(False)


def make_batch() -> AtomsBatch:
    ion = molecule("CH3CHO", info={"charge": -1})
    triplet = molecule("CH2_s3B1d", info={"spin": 3})
    crystal = bulk("Si", "diamond", 5.43)
    crystal.rattle(0.1, seed=1)
    return AtomsBatch.from_atoms([molecule("H2O"), ion, triplet, crystal, Atoms("O")])


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 0},
        {"layers": 1, "attributes": ("charge", "unpaired_electrons"),
         "attribute_weights": (0.3, 0.4)},
        {"layers": 3, "state_embedding": ("charge", "unpaired_electrons")},
        {"equivariance": "SO(3)", "attribute_weights": (0.5,)},
        {"channels": 22, "layers": 1},  # one register of them and a part of another
    ],
)  # fmt: skip
def test_equals_eager(options):
    core, batch = make_core(**options), make_batch()
    terms = (ZBL(),)
    eager = Potential(core, terms, 2.0).evaluate(batch, stress=True)
    fast = Potential(TensorNetInference(core, 2048), terms, 2.0).evaluate(batch, stress=True)
    torch.testing.assert_close(fast.energies, eager.energies, rtol=0, atol=TABLE_ERROR)
    torch.testing.assert_close(fast.forces, eager.forces, rtol=0, atol=TABLE_ERROR)
    torch.testing.assert_close(fast.stress, eager.stress, rtol=0, atol=TABLE_ERROR, equal_nan=True)
    assert float(eager.forces.abs().max()) > 0.01


def test_any_combination_of_the_atoms_energies_can_be_differentiated():
    core, batch = make_core(), make_batch()
    neighbors = neighbor_list(batch, core.cutoff)
    weights = torch.linspace(-1.0, 2.0, batch.n_atoms, dtype=torch.float64)
    gradients = []
    for network in (core, TensorNetInference(core, 2048)):
        vectors = neighbors.vectors.clone().requires_grad_(True)
        distances = vectors.norm(dim=1)
        energies = network(
            batch.numbers, neighbors.pairs, vectors, distances, batch.system,
            batch.charge.double(), batch.multiplicity.double(),
        )["energies"]  # fmt: skip
        gradients.append(torch.autograd.grad((weights * energies).sum(), vectors)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=TABLE_ERROR)


def test_there_is_no_second_derivative():
    core = make_core()
    potential = Potential(TensorNetInference(core))
    with pytest.raises(RuntimeError, match="no second derivative"):
        potential.hessian(AtomsBatch.from_atoms(molecule("H2O")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_do_not_depend_on_threads(dtype, monkeypatch):
    """Nor on which of a loop's two programs runs; all loops are parallel ones here."""
    for limit in ("SMALL_STEP", "LARGE_STEP"):
        monkeypatch.setattr(programs, limit, 0)
    core, batch = make_core(channels=36).to(dtype), make_batch().to(dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(Potential(TensorNetInference(core)).evaluate(batch).forces)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])


def test_an_atom_alone_and_no_pair_at_all():
    core = make_core()
    batch = AtomsBatch.from_atoms([Atoms("O"), Atoms("C")])
    eager, fast = (Potential(c).evaluate(batch) for c in (core, TensorNetInference(core)))
    torch.testing.assert_close(fast.energies, eager.energies, rtol=0, atol=TABLE_ERROR)
    assert torch.equal(fast.forces, torch.zeros(2, 3, dtype=torch.float64))


def test_memory_from_inference_mode_serves_outside_of_it():
    """The arrays of one evaluation are kept for the next, which may need gradients."""
    potential = Potential(TensorNetInference(make_core()))
    batch = AtomsBatch.from_atoms(molecule("H2O"))
    with torch.inference_mode():
        neighbors = neighbor_list(batch, potential.cutoff)
        first = potential(*inputs(batch, neighbors), compute_forces=False, compute_stress=False)
    second = potential.evaluate(batch)
    assert torch.equal(first["energy"], second.energy)
    assert torch.equal(second.forces, potential.evaluate(batch).forces)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_atoms_are_divided_among_any_number_of_threads(threads, monkeypatch):
    for limit in ("SMALL_STEP", "LARGE_STEP"):
        monkeypatch.setattr(programs, limit, 0)
    core, batch = make_core(), make_batch()
    alone = Potential(TensorNetInference(core)).evaluate(batch).forces
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        network = TensorNetInference(core)
        monkeypatch.setattr("nnpcalc.kernels.inference.FEWEST", 1)
        forces = Potential(network).evaluate(batch).forces
        assert network.lend(batch.n_atoms).arrays.scratch.x.shape[0] == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(forces, alone)
