"""Reduced precision of the matrix products: what it costs, and where it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import inputs
from nnpcalc.train import Trainer
from nnpcalc.train import precision as module
from nnpcalc.train.precision import check_precision, matrix_products
from nnpcalc.weights import load_potential
from train_corpus import settings, silent, write_corpus

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
UNSEEN = Path(__file__).parent / "data" / "unseen.xyz"


class Tf32(torch.autograd.Function):
    """Rounds to the 10 bits of mantissa that TF32 keeps, and gradients likewise."""

    @staticmethod
    def forward(ctx, x):
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    @staticmethod
    def backward(ctx, gradient):
        return Tf32.apply(gradient)


def results(precision, dtype=torch.float32):
    """Energies per atom (meV) and forces (meV/Å) of the shipped model, as training sees them."""
    potential = load_potential("tensornet-spice", dtype=dtype)
    structures = read(UNSEEN, ":")
    batch = AtomsBatch.from_atoms(structures, dtype=dtype)
    neighbors = neighbor_list(batch, potential.cutoff)
    with matrix_products(precision):
        out = potential(*inputs(batch, neighbors), compute_stress=False, create_graph=True)
    sizes = np.array([len(atoms) for atoms in structures])
    energy = out["energy"].detach().numpy() / sizes
    return 1e3 * energy, 1e3 * out["forces"].detach().double().numpy()


def test_cost_on_the_shipped_model(monkeypatch):
    """Printed: errors against float64. TF32 is emulated, as a CPU has none."""
    energy, forces = results("float32", torch.float64)
    found = {"float32": results("float32"), "bfloat16": results("bfloat16")}
    monkeypatch.setattr(module, "_rounded", lambda v: Tf32.apply(v) if is_single(v) else v)
    found["tf32"] = results("bfloat16")  # the same mode with another rounding
    mean = {}
    for name, (e, f) in found.items():
        mean[name] = float(np.abs(f - forces).mean())
        print(
            f"{name:<9} energy MAE {np.abs(e - energy).mean():.1e} meV/atom, force MAE "
            f"{mean[name]:.1e}, max {np.abs(f - forces).max():.1e} meV/Å"
        )
    assert mean["float32"] < 0.01
    assert 10.0 * mean["float32"] < mean["tf32"] < 2.0
    assert 2.0 * mean["tf32"] < mean["bfloat16"] < 20.0


def is_single(value):
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def test_bfloat16_rounds_products_and_their_derivatives():
    torch.manual_seed(0)
    a, b = (torch.randn(5, 5, requires_grad=True) for _ in range(2))
    with matrix_products("bfloat16"):
        product = a @ b
        (slope,) = torch.autograd.grad(product.square().sum(), a, create_graph=True)
    assert product.dtype == slope.dtype == torch.float32
    expected = (a.bfloat16() @ b.bfloat16()).float()
    assert torch.equal(product, expected)
    assert not torch.equal(product, a @ b)
    (second,) = torch.autograd.grad(slope.square().sum(), b)
    assert second.dtype == torch.float32 and bool(second.abs().max() > 0)


def test_double_precision_is_left_alone():
    a = torch.randn(4, 4, dtype=torch.float64)
    with matrix_products("bfloat16"):
        assert torch.equal(a @ a, torch.matmul(a, a))
    assert torch.equal(a @ a, torch.matmul(a, a))


def test_training_in_bfloat16_learns(tmp_path):
    write_corpus(tmp_path)
    config = settings(tmp_path, epochs=5, knots=0, precision="bfloat16")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run(silent)
    assert trainer.log[-1]["train_loss"] < 0.8 * trainer.log[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in trainer.parameters)


def test_refused_where_the_device_cannot(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'tf32' is for NVIDIA GPUs, not for cpu"):
        check_precision("tf32", CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no NVIDIA GPU for the device cuda:0"):
        check_precision("float32", CUDA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(ValueError, match=r"Tesla T4 has no .*: use precision = 'float32'"):
            check_precision(precision, CUDA)
    with pytest.raises(ValueError, match="not supported on mps"):
        check_precision("bfloat16", torch.device("mps"))
    write_corpus(tmp_path)
    with pytest.raises(ValueError, match="needs the eager network: set knots = 0"):
        Trainer(settings(tmp_path, precision="bfloat16"), tmp_path / "run")


def test_tf32_is_switched_on_and_off_again():
    before = torch.get_float32_matmul_precision()
    with matrix_products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
