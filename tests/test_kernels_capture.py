"""Replays of recorded evaluations give what launching their kernels gives.

On a GPU (marked gpu) CUDA graphs are recorded. In Triton's interpreter a tape of operations takes
their place (`taped.py`), which repeats them with the same tensors and spoils uninitialised memory.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import nn

import taped
from nnpcalc import backends
from nnpcalc.backends import Backend, Engine
from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels import fused
from nnpcalc.md.forcefield import ModelForceField
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.terms import ZBL, AtomicEnergies, Coulomb, StateEnergy, SystemEnergy
from test_inference import make_core
from tiny_model import make_potential
from triton_places import INTERPRETED, places, run_here, run_in_interpreter

pytest.importorskip("triton")

KNOTS, CUTOFF = 64, 2.6
ROUNDING = 1e-9  # of forces up to 100 eV/Å
TERMS = (
    AtomicEnergies({1: -13.6, 6: -1030.0, 8: -2041.0, 14: -7800.0}), StateEnergy(1.0, 2.0, 0.5),
    SystemEnergy(3.0), ZBL(),
)  # fmt: skip


class Stand(nn.Module):
    """Stands in for a `TritonTensorNet` where the interpreter would take too long: a pair potential
    that leaves garbage where that leaves uninitialised memory."""

    cutoff, elements, conditions_on = CUTOFF, (1, 6, 8), ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1, dtype=torch.float64), requires_grad=False)

    def of_atoms(self, numbers, system, charge, multiplicity, partial_charges=None):
        own = self.weight * (numbers + charge[system] + multiplicity[system])
        return own, own.sqrt(), own if partial_charges is None else partial_charges

    def energies(self, pairs, vectors, of_atoms):
        receiver, sender, attribute = of_atoms
        absent = pairs[0] >= receiver.shape[0]
        i, j = torch.where(absent, 0, pairs[0]), pairs[1]
        d = (vectors * vectors).sum(1).sqrt()
        values = receiver[i] * sender[j] * torch.exp(-d) * (1.0 - d / self.cutoff) ** 2
        return (receiver + attribute).index_add(0, i, values.masked_fill(absent, 0.0)), absent

    def evaluate(self, pairs, vectors, distances, of_atoms, derivative):
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_(derivative)
            energies, absent = self.energies(pairs, vectors, of_atoms)
            if not derivative:
                return energies, None
            (gradient,) = torch.autograd.grad(energies.sum(), vectors)
        return energies.detach(), gradient.masked_fill(absent[:, None], float("nan"))

    def forward(self, numbers, pairs, vectors, distances, system, charge, spin, partial=None):
        of_atoms = self.of_atoms(numbers, system, charge, spin, partial)
        return {"energies": self.energies(pairs, vectors, of_atoms)[0]}


class Both:
    """One network, launched and recorded; counts the recordings.

    On the CPU a `Stand`, unless its options are given.
    """

    def __init__(self, device: str, terms=TERMS, dtype=torch.float64, **options) -> None:
        from nnpcalc.kernels.triton_capture import CapturedPotential, cuda_graph
        from nnpcalc.kernels.triton_tensornet import TritonTensorNet

        if device == "cpu" and not options:
            core = Stand()
        else:
            options = {"channels": 2, "cutoff": CUTOFF, **options}
            core = TritonTensorNet(make_core(**options).to(device, dtype), KNOTS)
        self.device, self.recordings = device, 0
        self._record = taped.record if device == "cpu" else cuda_graph
        self.launched = Potential(core, terms, 2.0).to(device)
        self.captured = CapturedPotential(core, terms, 2.0, self.record).to(device)

    def record(self, call):
        self.recordings += 1
        return self._record(call)

    def check(self, batch: AtomsBatch, forces: bool = True, stress: bool = True):
        """Evaluate with both, compare, and return what the recorded one says."""
        neighbors = neighbor_list(batch, CUTOFF)
        options = {"forces": forces, "stress": stress}
        expected = self.launched.evaluate(batch, neighbors, **options)
        found = self.captured.evaluate(batch, neighbors, **options)
        for name in ("energy", "energies", "forces", "stress"):
            a, b = getattr(found, name), getattr(expected, name)
            assert (a is None) == (b is None), name
            if a is not None:
                assert a.dtype == b.dtype and not a.requires_grad
                torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING, equal_nan=True, msg=name)
        return found


@pytest.fixture(autouse=True)
def _terms_as_on_a_gpu(monkeypatch) -> None:
    """ZBL takes all pairs, without asking which are near."""
    original = ZBL.forward

    def forward(self, seen):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
            return original(self, seen)

    if INTERPRETED:
        monkeypatch.setattr(ZBL, "forward", forward)


def make_batch(device: str) -> AtomsBatch:
    """A cation with atoms so near that ZBL acts, and a radical."""
    near = Atoms("OHH", [[0, 0, 0], [0, 0, 0.45], [0.9, 0, 0]], info={"charge": 1})
    return AtomsBatch.from_atoms([near, Atoms("CH", [[0, 0, 0], [1.1, 0, 0]])]).to(device)


def moved(batch: AtomsBatch, scale: float) -> AtomsBatch:
    """The very same tensors but for positions (and cells)."""
    noise = torch.empty_like(batch.positions, device="cpu").uniform_(-0.02, 0.02)
    positions = batch.positions * scale + noise.to(batch.device)
    return replace(batch, positions=positions, cell=batch.cell * scale)


@pytest.mark.skipif(INTERPRETED, reason="this is the process")
def test_the_others_of_this_file_in_the_interpreter():
    run_in_interpreter(__file__)


@places
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 1, "attributes": ("charge", "unpaired_electrons"),
         "attribute_weights": (0.3, 0.4), "state_embedding": ("charge", "unpaired_electrons")},
    ],
)  # fmt: skip
def test_equals_launches_while_the_list_changes(options, device):
    both, batch = Both(device, **options), make_batch(device)
    lengths = []
    # recorded at the second; shorter, as long again, none
    for scale in (1.0, 1.0, 2.5, 0.9, 9.0):
        step = moved(batch, scale)
        both.check(step)
        lengths.append(neighbor_list(step, CUTOFF).n_pairs)
    assert lengths == [8, 8, lengths[2], 8, 0] and 0 < lengths[2] < 8
    assert float(both.check(batch).forces.abs().max()) > 10.0  # ZBL
    assert both.recordings == 1


@places
def test_a_list_that_outgrows_its_buffer_is_recorded_anew(device, monkeypatch):
    from nnpcalc.kernels import triton_capture

    monkeypatch.setattr(triton_capture, "HEADROOM", 1.0)
    monkeypatch.setattr(triton_capture, "GRANULE", 1)
    both, batch = Both(device, (ZBL(),)), make_batch(device)
    recordings = []
    for scale in (2.5, 2.5, 1.0, 1.0, 2.5):
        both.check(moved(batch, scale), stress=False)
        recordings.append(both.recordings)
    assert recordings == [0, 1, 2, 2, 2]


@places
def test_another_cell(device):
    crystal = bulk("Si", "diamond", 5.43)
    crystal.positions[1] += (0.1, -0.05, 0.02)
    near = Atoms("C", cell=[1.2, 2.5, 2.4], pbc=True)  # ZBL, and no force
    both = Both(device, layers=1)
    batch = AtomsBatch.from_atoms([crystal, near]).to(device)
    stresses = [both.check(moved(batch, scale)).stress for scale in (1.0, 1.0, 1.03, 0.98)]
    assert both.recordings == 1
    differences = (stresses[2] - stresses[3]).flatten(1).abs().amax(1)
    assert bool((differences > 1e-4).all())


@places
def test_another_charge_or_element_is_another_recording(device):
    both, batch = Both(device), make_batch(device).split()[0]
    first = [both.check(batch, stress=False).energy for _ in range(3)][-1]
    ions = replace(batch, charge=batch.charge + 2)
    second = [both.check(ions, stress=False).energy for _ in range(3)][-1]
    assert both.recordings == 2
    batch.charge[:] += 2  # into the very tensor
    third = [both.check(batch, stress=False).energy for _ in range(3)][-1]
    assert both.recordings == 3
    torch.testing.assert_close(third, second, rtol=0, atol=ROUNDING)
    assert not torch.equal(third, first)
    batch.numbers[1] = 8
    both.check(batch, stress=False)
    assert both.recordings == 3


@places
def test_partial_charges(device):
    options = {"attributes": ("partial_charges",), "attribute_weights": (0.5,)}
    both = Both(device, **(options if device == "cuda" else {}))
    batch = make_batch(device).split()[0]
    charges = torch.linspace(-0.5, 1.0, batch.n_atoms, dtype=torch.float64, device=device)
    batch = replace(batch, partial_charges=charges)
    for _ in range(3):
        first = both.check(batch, False, False)
    charges.neg_()
    for _ in range(3):
        second = both.check(batch, False, False)
    assert both.recordings == 2 and not torch.equal(first.energy, second.energy)


@places
@pytest.mark.parametrize(("terms", "options"), [((), {}), (TERMS, {}), ((ZBL(),), {"layers": 0})])
def test_no_pair_at_all_and_what_is_wanted(terms, options, device):
    both = Both(device, terms, **options)
    alone = AtomsBatch.from_atoms([Atoms("O"), Atoms("C")]).to(device)
    for wanted in ((True, True), (False, False), (True, False), (False, True)):
        for _ in range(3):
            found = both.check(alone, *wanted)
        assert found.forces is None or not bool(found.forces.any())
    assert both.recordings == 4
    both = Both(device, terms)
    for _ in range(3):  # by turns
        both.check(alone, False, False)
        both.check(alone, True, False)
    assert both.recordings == 2


@places
def test_results_are_the_callers(device):
    both, batch = Both(device), make_batch(device)
    for _ in range(2):
        both.check(batch)
    kept = both.check(batch)
    copies = copy.deepcopy(kept)
    both.check(moved(batch, 1.1))
    for name in ("energy", "energies", "forces", "stress"):
        torch.testing.assert_close(
            getattr(kept, name), getattr(copies, name), rtol=0, atol=0, equal_nan=True
        )
        getattr(kept, name).fill_(1e3)
    both.check(batch)


@places
def test_what_is_not_recorded(device, monkeypatch):
    from nnpcalc.kernels import triton_capture

    both, batch = Both(device), make_batch(device)
    other = replace(batch, numbers=batch.numbers.clone())
    for _ in range(2):  # never twice in a row
        both.check(batch)
        both.check(other)
    neighbors = neighbor_list(batch, CUTOFF)
    gradients = []
    for potential in (both.launched, both.captured, both.captured):
        positions = batch.positions.clone().requires_grad_(True)
        given = inputs(replace(batch, positions=positions), neighbors)
        output = potential(*given, compute_forces=False, compute_stress=False)
        gradients.append(torch.autograd.grad(output["energy"].sum(), positions)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=ROUNDING)
    assert torch.equal(gradients[1], gradients[2])
    if device == "cuda":
        with pytest.raises(RuntimeError, match="no second derivative"):
            both.captured(*inputs(batch, neighbors), create_graph=True)
    else:
        assert both.captured(*inputs(batch, neighbors), create_graph=True)["energy"].requires_grad
    with torch.inference_mode():  # tensors that do not count what is written into them
        kept = make_batch(device)
        given, options = inputs(kept, neighbors), {"compute_forces": False, "compute_stress": False}
        energies = []
        for _ in range(3):
            energies.append(both.captured(*given, **options)["energy"])
            kept.charge[:] += 1
    assert not torch.equal(energies[1], energies[2])
    monkeypatch.setattr(triton_capture, "MOST_ATOMS", batch.n_atoms - 1)
    for _ in range(3):
        both.check(batch)
    nothing = AtomsBatch.from_atoms([Atoms()]).to(device)
    for _ in range(3):
        assert both.captured.evaluate(nothing).energy.tolist() == [0.0]
    assert both.recordings == 0
    monkeypatch.undo()


@places
def test_modes_of_the_caller(device):
    both, batch = Both(device), make_batch(device)
    given = inputs(batch, neighbor_list(batch, CUTOFF))
    expected = both.launched.evaluate(batch, forces=False).energy
    options = {"compute_forces": False, "compute_stress": False}
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():  # recorded in the first; used in all
            for _ in range(2):
                energy = both.captured(*given, **options)["energy"]
                torch.testing.assert_close(energy, expected, rtol=0, atol=ROUNDING)
    assert both.recordings == 1
    for _ in range(2):
        both.captured(*given)
    with torch.no_grad(), pytest.raises(AssertionError, match="no_grad"):
        both.captured(*given)


@places
def test_copies_have_no_recordings(device):
    both, batch = Both(device), make_batch(device).split()[1]
    for _ in range(2):
        expected = both.check(batch)
    assert both.captured._subject.recordings
    both.captured._record = taped.record  # pickles by its name
    copies = (
        copy.deepcopy(both.captured),
        copy.copy(both.captured),
        pickle.loads(pickle.dumps(both.captured)),
    )
    for other in copies:
        assert other._subject is None
        assert torch.equal(other.evaluate(batch, stress=True).energy, expected.energy)
    assert both.captured._subject.recordings
    assert both.captured.to(device)._subject is None


@run_here
def test_a_replay_that_differs_is_an_error_with_the_remedy():
    both, batch = Both("cpu"), make_batch("cpu")

    def wrong(call):
        replay, outputs = taped.record(call)
        return lambda: (replay(), outputs["forces"][0].add_(0.01)), outputs

    both.captured._record = wrong
    both.check(batch)
    for _ in range(2):  # neither is it taken the next time
        with pytest.raises(RuntimeError, match=r"5 atoms.* forces .*1\.0e-02.*backend='eager'"):
            both.captured.evaluate(batch, stress=True)

    def impossible(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    both.captured._record = impossible
    with pytest.raises(RuntimeError, match="not permitted") as caught:
        both.captured.evaluate(batch, stress=True)
    assert "backend='eager'" in caught.value.__notes__[0]


@run_here
def test_the_tape_refuses_what_a_graph_cannot_record():
    x = torch.arange(3.0)
    for call in (lambda: x[x > 1.0], lambda: float(x[0]), lambda: torch.tensor([1.0]) + x):
        with pytest.raises(AssertionError, match="cannot record"):
            taped.record(lambda call=call: {"x": call()})
    replay, outputs = taped.record(lambda: {"x": 2.0 * x})
    x.add_(1.0)
    assert bool(outputs["x"].isnan().all())
    replay()
    assert outputs["x"].tolist() == [2.0, 4.0, 6.0]


@places
def test_dynamics(device):
    """With a Verlet list and, on a GPU, in float32; periodic, so that pairs come and go."""
    crystal = bulk("C", "diamond", 3.6)
    crystal.rattle(0.1, seed=1)
    batch = AtomsBatch.from_atoms([crystal]).to(device)
    both = Both(device, (ZBL(),), torch.float32 if device == "cuda" else torch.float64)
    paths = []
    for program in (both.launched, both.captured):
        record = Backend("fused", "fused", "", device, str(program.dtype).removeprefix("torch."))
        field = ModelForceField(Engine(both.launched, program, record), reproducible=False)
        atoms, velocities = batch, torch.zeros_like(batch.positions)
        for _ in range(20 if device == "cpu" else 200):
            velocities = velocities + 0.01 * field(atoms).forces
            atoms = replace(atoms, positions=atoms.positions + 0.3 * velocities)
        paths.append(atoms.positions)
    assert both.recordings == 1
    assert float((paths[0] - batch.positions).abs().max()) > 1e-3
    atol = 1e-9 if device == "cpu" else 1e-3
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=atol)


@run_here
def test_who_gets_it(monkeypatch):
    from nnpcalc.kernels.triton_capture import CapturedPotential
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    monkeypatch.setattr(fused, "fused_for_inference", lambda core: TritonTensorNet(core, KNOTS))
    potential, place = make_potential(), torch.device("cuda:0")
    program = backends._program(potential, "fused", place, torch.float32)
    assert type(program) is CapturedPotential and not program.training
    assert backends._choose(potential, "fused", place)[1].endswith("small systems as CUDA graphs")
    potential = Potential(potential.core, (Coulomb(),))
    assert type(backends._program(potential, "fused", place, torch.float32)) is Potential
    assert backends._choose(potential, "fused", place)[1] == "asked for: Triton on cuda:0"


@places
def test_float32(device):
    """The tolerances of the comparison are wide enough."""
    both = Both(device, dtype=torch.float32, layers=0)
    batch = make_batch(device).to(dtype=torch.float32)
    for scale in (1.0, 1.0, 1.1, 0.9):
        step = moved(batch, scale)
        expected = both.launched.evaluate(step, stress=True)
        found = both.captured.evaluate(step, stress=True)
        bound = 1e-5 * float(expected.forces.abs().max())
        torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=bound)
        torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-4)
        assert found.forces.dtype == torch.float32
    assert both.recordings == 1
