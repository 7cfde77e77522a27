"""TorchScript files: the same numbers as the eager model, anywhere, and only when trusted."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nnpcalc import weights
from nnpcalc.batch import AtomsBatch
from nnpcalc.cards import WeightsError, build_from_card
from nnpcalc.models import ARCHITECTURES
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential
from nnpcalc.verify import verify
from nnpcalc.weights import (
    export_torchscript,
    load_potential,
    save_potential,
)
from small_model import STATES, assert_equal, evaluate, structures


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_saved_and_exported_equal_eager(
    small_model: Path, small_potential: Potential, dtype: torch.dtype, tolerance: float
) -> None:
    eager = small_potential.to(dtype)
    saved = load_potential("small", dtype=dtype)
    exported = load_potential(small_model / "model.pt", dtype=dtype, trust=True)
    assert (saved.dtype, exported.dtype) == (dtype, dtype)
    assert exported.cutoff == saved.cutoff == eager.cutoff
    assert exported.elements == saved.elements == eager.elements
    frames = structures()
    # Several sizes: TorchScript specialises a program to the first shapes it meets.
    for atoms in (frames, frames[:1], frames[3:], frames[::-1]):
        expected = evaluate(eager, dtype, atoms)
        assert_equal(evaluate(saved, dtype, atoms), expected, 0.0)
        assert_equal(evaluate(exported, dtype, atoms), expected, tolerance)


def test_without_pairs(small_model: Path) -> None:
    """One atom, and no atom at all: TorchScript has no forces to differentiate."""
    exported = load_potential(small_model / "model.pt", dtype=torch.float64, trust=True)
    saved = load_potential("small", dtype=torch.float64)
    for atoms in (Atoms("H"), Atoms(), [Atoms("Cl", info={"charge": -1}), Atoms("H")]):
        expected = evaluate(saved, torch.float64, atoms)
        assert not expected["forces"].any()
        assert_equal(evaluate(exported, torch.float64, atoms), expected, 1e-12)


def test_export_in_float64(small_potential: Potential, tmp_path: Path) -> None:
    small_potential = small_potential.double()
    with torch.no_grad():  # parameters that float32 cannot hold
        for parameter in small_potential.parameters():
            parameter.mul_(1.0 + 1e-12)
    export_torchscript(small_potential, tmp_path / "double.pt", card=STATES, dtype=torch.float64)
    exported = load_potential(tmp_path / "double.pt", dtype=torch.float64, trust=True)
    expected = evaluate(small_potential, torch.float64, structures())
    assert_equal(evaluate(exported, torch.float64, structures()), expected, 1e-12)
    # A program made for float64 runs in float32 as well, and keeps total energies of 1e4 eV.
    single = evaluate(exported.to(torch.float32), torch.float32, structures())
    assert_equal(
        {key: value.double() for key, value in single.items()},
        {key: value.double() for key, value in expected.items()},
        1e-5,
    )


def test_hessian_of_torchscript(small_model: Path) -> None:
    batch = AtomsBatch.from_atoms(structures()[2])
    exported = load_potential(small_model / "model.pt", dtype=torch.float64, trust=True)
    expected = load_potential("small", dtype=torch.float64).hessian(batch)
    torch.testing.assert_close(exported.hessian(batch), expected, rtol=0.0, atol=1e-12)


def test_exporting_changes_nothing(small_potential: Potential, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in small_potential.state_dict().items()}
    flags = [
        (parameter.requires_grad, parameter.dtype) for parameter in small_potential.parameters()
    ]
    export_torchscript(small_potential, tmp_path / "x.pt", card=STATES, dtype=torch.float64)
    assert small_potential.training
    assert [(p.requires_grad, p.dtype) for p in small_potential.parameters()] == flags
    assert all(
        torch.equal(value, before[key]) for key, value in small_potential.state_dict().items()
    )


def test_torchscript_runs_without_the_package(
    small_model: Path, small_potential: Potential, tmp_path: Path
) -> None:
    """In a process that cannot import nnpcalc, with tensors from a file, in both dtypes."""
    script = tmp_path / "elsewhere" / "run.py"
    script.parent.mkdir()
    script.write_text(
        """
import importlib.util, json, sys, warnings
import torch
warnings.simplefilter("ignore", DeprecationWarning)
# an editable install leaves the directory of the weights behind, which has no code in it
assert not any(map(importlib.util.find_spec, ["nnpcalc.potential", "nnpcalc.models"])
               if importlib.util.find_spec("nnpcalc") else []), "nnpcalc can be imported here"
torch.set_num_threads(1)
extra = {"card.json": ""}
model = torch.jit.load(sys.argv[1], _extra_files=extra)
card = json.loads(extra["card.json"])
inputs = torch.load(sys.argv[2], weights_only=True)
assert model.cutoff == card["cutoff"]
results = {}
for dtype in (torch.float32, torch.float64):
    model = model.to(dtype)
    floats = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    results[str(dtype)] = model(**floats)
torch.save(results, sys.argv[3])
"""
    )
    batch = AtomsBatch.from_atoms(structures())
    neighbors = neighbor_list(batch, small_potential.cutoff)
    inputs = {
        "numbers": batch.numbers,
        "positions": batch.positions,
        "cell": batch.cell,
        "system": batch.system,
        "pairs": neighbors.pairs,
        "shifts": neighbors.shifts,
        "charge": batch.charge,
        "multiplicity": batch.multiplicity,
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    # -I ignores the current directory and PYTHONPATH. An editable install is seen even so: -S
    # leaves out site-packages and with it the link to the source tree.
    torch_home = Path(torch.__file__).resolve().parent.parent
    code = (
        f"import sys; sys.path.append({str(torch_home)!r}); import runpy; sys.argv = sys.argv[1:]"
    )
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    files = [str(script), str(small_model / "model.pt"), "inputs.pt", "outputs.pt"]
    files[2:] = [str(tmp_path / name) for name in files[2:]]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *files],
        cwd=script.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        expected = evaluate(small_potential.to(dtype), dtype, structures())
        found = outputs[str(dtype)]
        assert_equal({key: found[key] for key in expected}, expected, tolerance)
        assert found["energy"].dtype == found["energies"].dtype == torch.float64


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_is_saved_and_exported(architecture: str, tmp_path: Path) -> None:
    """The default configuration survives a card, builds on "meta" and compiles."""
    potential = Potential(ARCHITECTURES[architecture](ARCHITECTURES[architecture].Config()))
    card = save_potential(potential, tmp_path / architecture, STATES)
    assert build_from_card(card, "the card", device="meta").device.type == "meta"
    saved = load_potential(tmp_path / architecture)
    exported = load_potential(tmp_path / architecture / "model.pt", trust=True)
    assert saved.core.config == potential.core.config
    batch = AtomsBatch.from_atoms(molecule("CH3OH"), dtype=torch.float32)
    if "partial_charges" in saved.core.conditions_on:  # type: ignore[operator]
        pytest.skip("needs partial charges")
    expected = potential.evaluate(batch)
    for found in (saved, exported):
        results = found.evaluate(batch)
        torch.testing.assert_close(results.energy, expected.energy, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(results.forces, expected.forces, rtol=0.0, atol=1e-6)


def test_torchscript_needs_trust(small_model: Path) -> None:
    with pytest.raises(WeightsError, match="trust=True"):
        load_potential(small_model / "model.pt")  # the card beside it proves nothing


def test_shipped_torchscript_is_trusted(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "shipped_directory", lambda: small_model.parent)
    monkeypatch.delenv("NNPCALC_WEIGHTS")
    assert load_potential(small_model / "model.pt").card["name"] == "small"
    assert all(check.passed for check in verify("small", backend="torchscript"))
    data = (small_model / "model.pt").read_bytes()
    (small_model / "model.pt").write_bytes(data + b"\0")
    with pytest.raises(WeightsError, match="trust=True"):
        load_potential(small_model / "model.pt")


class Foreign(torch.nn.Module):
    """Another program with another signature."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_foreign_torchscript(tmp_path: Path) -> None:
    program = torch.jit.script(Foreign())
    file = tmp_path / "foreign.pt"
    torch.jit.save(program, file)
    with pytest.raises(WeightsError, match=r"card\.json"):
        load_potential(file, trust=True)
    card = {"cutoff": 5.0, "elements": [1], **STATES}
    torch.jit.save(program, file, _extra_files={"card.json": json.dumps(card)})
    with pytest.raises(WeightsError, match=r"takes \(x\)"):
        load_potential(file, trust=True)
    card.pop("cutoff")
    torch.jit.save(program, file, _extra_files={"card.json": json.dumps(card)})
    with pytest.raises(WeightsError, match="lacks cutoff"):
        load_potential(file, trust=True)
    file.write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        load_potential(file, trust=True)
    torch.save({"a": torch.ones(2)}, file)
    with pytest.raises(WeightsError, match=r"card\.json"):
        load_potential(file, trust=True)


def test_compressed_bomb(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deflated archive is small on disk; what counts is its size unpacked."""
    monkeypatch.setattr("nnpcalc.torchscript.MAX_MODEL_BYTES", 5_000_000)
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(small_model / "model.pt") as good,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for item in good.infolist():
            bad.writestr(item.filename, good.read(item))
        bad.writestr("model/data/99", b"\0" * 10_000_000)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(WeightsError, match="unpacks to"):
        load_potential(bomb, trust=True)
