"""backends.py: what runs, why, and that nothing else is taken in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import nn

from nnpcalc import NNPCalculator, backends, build_potential
from nnpcalc.backends import BackendError, prepare
from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.models import build_core
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential
from tiny_model import make_potential


class Other(nn.Module):
    """A core that is no TensorNet."""

    def __init__(self) -> None:
        super().__init__()
        self.cutoff, self.elements, self.conditions_on = 3.0, (1, 8), ()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, numbers: torch.Tensor, *rest: Any) -> dict[str, torch.Tensor]:
        return {"energies": self.weight * numbers}


def test_auto_takes_the_fused_kernels_for_tensornet() -> None:
    engine = prepare(make_potential(), device="cpu")
    assert (engine.backend.name, engine.backend.requested) == ("fused", "auto")
    assert engine.backend.reason == "TensorNet on the CPU"
    assert (engine.backend.device, engine.backend.dtype) == ("cpu", "float32")
    assert isinstance(engine.program.core, TensorNetInference)
    assert not any(p.requires_grad for p in engine.program.parameters())
    assert engine.name == "tiny"
    assert engine.elements.tolist() == [1, 6, 7, 8]
    assert engine.conditions == ("charge", "multiplicity")


@pytest.mark.parametrize(
    ("architecture", "core"), [("schnet", "FusedSchNet"), ("painn", "FusedPaiNN")]
)
def test_other_architectures_with_a_fast_path(architecture: str, core: str) -> None:
    options = {"channels": 8, "layers": 1, "elements": [1, 8]}
    potential = Potential(build_core(architecture, options))
    fused, eager = (prepare(potential, dtype="float64", backend=b) for b in ("auto", "eager"))
    assert fused.backend.name == "fused"
    assert type(fused.program.core).__name__ == core
    batch = AtomsBatch.from_atoms(molecule("H2O"), dtype=torch.float64)
    neighbors = neighbor_list(batch, potential.cutoff)
    found = [e.run(batch, neighbors, forces=True, stress=False)["forces"] for e in (fused, eager)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-7)


def test_auto_says_why_it_cannot() -> None:
    other = prepare(Potential(Other()))
    assert other.backend.name == "eager"
    assert other.backend.reason == "there are no fused kernels for Other"
    assert other.name == "Other"


def test_fused_where_it_cannot_run_is_an_error() -> None:
    with pytest.raises(BackendError, match="no fused kernels for Other; use backend='eager'"):
        prepare(Potential(Other()), backend="fused")


def test_what_no_table_represents_runs_eagerly() -> None:
    potential = make_potential()
    with torch.no_grad():
        for parameter in potential.core.layers[0].parameters():
            parameter.mul_(1e3)
    engine = prepare(potential, dtype="float64")
    assert engine.backend.name == "eager"
    assert engine.backend.reason.startswith("the radial functions are too steep for tables")
    with pytest.raises(BackendError, match="cannot run: the radial functions are too steep"):
        prepare(potential, dtype="float64", backend="fused")
    with torch.no_grad():
        for parameter in potential.core.layers[0].parameters():
            parameter.fill_(torch.nan)
    assert "are not finite" in prepare(potential).backend.reason


def test_a_layer_that_is_zero_has_a_table() -> None:
    potential = make_potential()
    with torch.no_grad():
        for parameter in potential.core.layers[0].parameters():
            parameter.zero_()
    batch = AtomsBatch.from_atoms(molecule("H2O"), dtype=torch.float64)
    neighbors = neighbor_list(batch, potential.cutoff)
    found = []
    for name in ("fused", "eager"):
        engine = prepare(potential, dtype="float64", backend=name)
        found.append(engine.run(batch, neighbors, forces=True, stress=False)["forces"])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_torchscript_files_stay_torchscript(small_model: Path) -> None:
    file = small_model / "model.pt"
    backend = prepare(file, trust=True).backend
    assert (backend.name, backend.reason) == ("torchscript", "the model is a TorchScript file")
    for wanted in ("eager", "fused"):
        with pytest.raises(BackendError, match="give the model's name or directory"):
            prepare(file, backend=wanted, trust=True)
    with pytest.raises(ValueError, match="trust=True"):
        prepare(file)
    engine = prepare(file, trust=True, dtype="float64")
    assert engine.conditions == ("charge", "multiplicity")
    assert engine.potential.dtype == torch.float64


def test_asked_for() -> None:
    for name in ("eager", "torchscript", "fused"):
        backend = prepare(make_potential(), backend=name).backend
        assert (backend.name, backend.reason) == (name, "asked for")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "jit"}, "backend must be one of auto, eager, fused, torchscript, not 'jit'"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64', not 'float16'"),
        ({"dtype": torch.int64}, "not torch.int64"),
        ({"device": "abacus"}, "no device 'abacus' here .*; use device='cpu'"),
    ],
)
def test_impossible_wishes(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BackendError, match=text):
        prepare(make_potential(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_here() -> None:
    with pytest.raises(BackendError, match="no device 'cuda' here"):
        NNPCalculator(make_potential(), device="cuda")
    assert prepare(make_potential(), device=None).backend.device == "cpu"


def test_a_bare_network_is_no_model() -> None:
    with pytest.raises(BackendError, match=r"not TensorNet; wrap a bare core network: Potential"):
        prepare(make_potential().core)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("core", "wanted", "triton", "outcome"),
    [
        ("tensornet", "fused", True, ("fused", "asked for: Triton on cuda:0")),
        ("tensornet", "auto", True, ("eager", "have to be asked for: backend='fused'")),
        ("tensornet", "auto", False, ("eager", "need triton")),
        ("tensornet", "fused", False, "need triton; pip install triton, or use device='cpu'"),
        ("schnet", "auto", True, ("eager", "for SchNet do not run on cuda:0")),
        ("schnet", "fused", True, "do not run on cuda:0; use device='cpu' or backend='eager'"),
    ],
)
def test_what_cuda_runs(core, wanted, triton, outcome, monkeypatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object() if triton else None)
    potential = build_potential(core, (1, 8), seed=0)
    if isinstance(outcome, str):
        with pytest.raises(BackendError, match=outcome):
            backends._choose(potential, wanted, torch.device("cuda:0"))
    else:
        name, reason = backends._choose(potential, wanted, torch.device("cuda:0"))
        assert name == outcome[0] and outcome[1] in reason


@pytest.mark.gpu
def test_cuda_runs_the_eager_model_unless_told_otherwise() -> None:
    engine = prepare(make_potential(), device="cuda")
    assert (engine.backend.name, engine.backend.device) == ("eager", "cuda:0")
    engine = prepare(make_potential(), device="cuda", backend="fused")
    assert type(engine.program.core).__name__ == "TritonTensorNet"
