"""TensorNet's Triton kernels give the numbers of the loops on the CPU.

With a GPU they are compiled and run on it (marked gpu). Without, they run in Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, Results
from nnpcalc.terms import ZBL
from test_inference import make_core
from triton_places import INTERPRETED, places, run_in_interpreter

pytest.importorskip("triton")

KNOTS = 64  # the same table errors in both: rounding is all that may differ
ROUNDING = 1e-12


def make_batch() -> AtomsBatch:
    """An ion, a triplet, a crystal whose atom is its own neighbour, and an atom alone."""
    ion = Atoms("OH", [(0.0, 0.0, 0.0), (0.5, 0.6, -0.6)], info={"charge": -1})
    crystal = bulk("Si", "diamond", 5.43)
    crystal.positions[1] += (0.1, -0.05, 0.02)
    structures = [ion, molecule("CH2_s3B1d", info={"spin": 3}), crystal, Atoms("O")]
    for k, atoms in enumerate(structures):
        charges = [0.1 * (k + 1) * (-1) ** n for n in range(len(atoms))]
        atoms.set_array("partial_charges", torch.tensor(charges).double().numpy())
    return AtomsBatch.from_atoms(structures)


def both(batch: AtomsBatch, device: str, **options) -> tuple[Results, Results]:
    """Results by the loops on the CPU and by the Triton kernels."""
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    core = make_core(**{"channels": 6, "layers": 1, "cutoff": 2.8, **options})
    expected = Potential(TensorNetInference(core, KNOTS), (ZBL(),), 2.0)
    reference = expected.evaluate(batch, stress=True)
    triton_core = TritonTensorNet(core.to(device), KNOTS)
    potential = Potential(triton_core, (ZBL(),), 2.0).to(device)
    return reference, potential.evaluate(batch.to(device), stress=True)


def assert_equal(reference: Results, found: Results) -> None:
    options = {"rtol": 0, "atol": ROUNDING, "equal_nan": True}
    for name in ("energies", "forces", "stress"):
        expected, actual = getattr(reference, name), getattr(found, name).cpu()
        torch.testing.assert_close(actual, expected, **options)
    assert float(reference.forces.abs().max()) > 0.01


@pytest.mark.skipif(INTERPRETED, reason="this is the process")
def test_the_others_of_this_file_in_the_interpreter():
    run_in_interpreter(__file__)


@places
@pytest.mark.parametrize(
    "options",
    [
        {"layers": 0},
        {"layers": 2, "attributes": ("charge", "unpaired_electrons"),
         "attribute_weights": (0.3, 0.4), "state_embedding": ("charge", "unpaired_electrons")},
        {"equivariance": "SO(3)", "attributes": ("partial_charges",), "attribute_weights": (0.5,)},
    ],
)  # fmt: skip
def test_equals_the_loops_of_the_cpu(options, device):
    assert_equal(*both(make_batch(), device, **options))


@places
@pytest.mark.parametrize(
    "settings",
    [
        {"WARP": 8, "MOST_WARPS": 1},  # one pair at a time
        {"WARP": 8, "MOST_WARPS": 1, "CHANNELS": 4},  # two, of three; blocks of channels
        {"MOST_WARPS": 4},
    ],
)
def test_numbers_do_not_depend_on_what_a_program_does(settings, device, monkeypatch):
    from nnpcalc.kernels import triton_tensornet

    for name, value in settings.items():
        monkeypatch.setattr(triton_tensornet, name, value)
    batch = AtomsBatch.from_atoms(molecule("NH3"))
    assert neighbor_list(batch, 2.8).n_pairs == 12
    assert_equal(*both(batch, device, layers=2))


@places
def test_no_pair_at_all_and_no_atom(device):
    batch = AtomsBatch.from_atoms([Atoms("O"), Atoms("C")])
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    core = make_core(layers=1)
    reference = Potential(TensorNetInference(core, KNOTS)).evaluate(batch)
    potential = Potential(TritonTensorNet(core.to(device), KNOTS)).to(device)
    found = potential.evaluate(batch.to(device))
    torch.testing.assert_close(found.energies.cpu(), reference.energies, rtol=0, atol=ROUNDING)
    assert torch.equal(found.forces.cpu(), torch.zeros(2, 3, dtype=torch.float64))
    nothing = potential.evaluate(AtomsBatch.from_atoms([Atoms()]).to(device))
    assert nothing.energies.shape == (0,) and nothing.energy.tolist() == [0.0]


@places
def test_any_combination_of_the_atoms_energies_but_no_second_derivative(device):
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    core, batch = make_core(layers=1, channels=6), make_batch().split()[1]
    neighbors = neighbor_list(batch, core.cutoff)
    weights = torch.linspace(-1.0, 2.0, batch.n_atoms, dtype=torch.float64)
    gradients = []
    for kind, place in ((TensorNetInference, "cpu"), (TritonTensorNet, device)):
        vectors = neighbors.vectors.to(place).requires_grad_(True)
        there = batch.to(place)
        energies = kind(core.to(place), KNOTS)(
            there.numbers, neighbors.pairs.to(place), vectors, vectors.norm(dim=1), there.system,
            there.charge.double(), there.multiplicity.double(),
        )["energies"]  # fmt: skip
        wanted = (weights.to(place) * energies).sum()
        gradients.append(torch.autograd.grad(wanted, vectors, retain_graph=True)[0].cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=ROUNDING)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(wanted, vectors, create_graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU")
def test_float32_on_a_gpu_gives_the_same_bits_again():
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    core = make_core(channels=128, cutoff=5.0)
    atoms = bulk("Si", "diamond", 5.43, cubic=True) * (6, 6, 6)
    atoms.rattle(0.1, seed=1)
    batch = AtomsBatch.from_atoms(atoms, dtype=torch.float64)
    exact = Potential(TensorNetInference(core)).evaluate(batch)
    potential = Potential(TritonTensorNet(core.to("cuda", torch.float32)))
    batch = batch.to("cuda", torch.float32)
    first, second = potential.evaluate(batch), potential.evaluate(batch)
    assert torch.equal(first.energies, second.energies)
    torch.testing.assert_close(first.energies.cpu(), exact.energies, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.forces.cpu().double(), exact.forces, rtol=0, atol=1e-4)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes the CPU")
def test_a_network_on_the_cpu_is_an_error_that_names_the_remedy():
    from nnpcalc.kernels.triton_tensornet import TritonTensorNet

    with pytest.raises(ValueError, match=r"need a CUDA device.*on cpu.*TensorNetInference"):
        TritonTensorNet(make_core())


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("kind", ["fp32", "fp64"])
def test_compiles_for_a_gpu_without_having_one(kind, tmp_path, monkeypatch):
    """What the interpreter does not see: that the code is Triton's language, computes in one dtype
    and reads several channels at once (compute capability 9.0, 128 channels)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nnpcalc.kernels import triton_nodes, triton_pairs
    from nnpcalc.kernels.triton_tensornet import BLOCK, CHANNELS, COMPILER, WARP, WARPS

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    over_pairs = {"F": 128, "SCALE": 613.2, "KNOTS": 512, "BLOCK_P": WARP // CHANNELS,
                  "BLOCK_F": CHANNELS, "SYMMETRIC": True}  # fmt: skip
    over_atoms = {"F": 128, "BLOCK": BLOCK, "LAST": kind == "fp32", "SYMMETRIC": False}
    kinds = {"pointer": "*i64", "sender": "*i64", "n_atoms": "i32", "n_pairs": "i32",
             "n_slopes": "i32"}  # fmt: skip
    names = ("embed_pairs", "embed_pairs_reverse", "interact", "message_reverse")
    kernels = [(getattr(triton_pairs, name), over_pairs, 1) for name in names]
    names = ("scale", "scale_reverse", "update", "update_reverse", "react_reverse")
    kernels += [(getattr(triton_nodes, name), over_atoms, WARPS) for name in names]
    for kernel, options, warps in kernels:
        constants = {name: options[name] for name in kernel.arg_names if name in options}
        signature = {
            name: "constexpr" if name in constants else kinds.get(name, f"*{kind}")
            for name in kernel.arg_names
        }
        # as PyTorch allocates
        aligned = {
            (k,): [["tt.divisibility", 16]]
            for k, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*") and name not in ("sender", "slopes")
        }
        source = ASTSource(kernel, signature, constants, aligned)
        target = GPUTarget("cuda", 90, 32)
        options = {"num_warps": warps, **COMPILER}
        code = triton.compile(source, target=target, options=options).asm["ptx"]
        assert (".f64" if kind == "fp32" else ".f32") not in code, f"{kernel} rounds or widens"
        width = "v4.b32" if kernel.__module__ == triton_pairs.__name__ else "v2.b32"
        width = width if kind == "fp32" else "v2.b64"
        assert code.count(f"ld.global.{width}") >= 12, f"{kernel} reads in small pieces"
