"""nnpcalc convert: other programs' files become models that give the same energies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule

import small_ani
import test_aimnet2
import test_schnetpack
import test_torchmdnet
from nnpcalc import NNPCalculator
from nnpcalc.batch import AtomsBatch
from nnpcalc.calculator import ExtrapolationError
from nnpcalc.cli import main
from nnpcalc.convert import convert, detect, resolve_target
from nnpcalc.interop import aimnet2, ani, schnetpack, torchmdnet
from nnpcalc.potential import Potential
from nnpcalc.units import HARTREE, KCAL_PER_MOL

# --- small files of every format ------------------------------------------------------------------


def torchmdnet_file(directory: Path) -> Path:
    return test_torchmdnet.write(directory / "model.ckpt", test_torchmdnet.tiny_checkpoint())


def schnetpack_file(directory: Path) -> Path:
    torch.save(test_schnetpack.random_state(), directory / "painn.pt")
    return directory / "painn.pt"


def aimnet2_file(directory: Path) -> Path:
    return test_aimnet2.write(
        test_aimnet2.published(test_aimnet2.small()), directory / "aimnet2.jpt"
    )


def aimnet_file(directory: Path) -> Path:
    torch.save(test_aimnet2.dictionary(test_aimnet2.small()), directory / "aimnet.pt")
    return directory / "aimnet.pt"


def neurochem_directory(directory: Path) -> Path:
    return small_ani.write_directory(directory / "ani")


def torchani_file(directory: Path) -> Path:
    torch.save(small_ani.state_dict(), directory / "ani.pt")
    return directory / "ani.pt"


CHOSEN: dict[str, Any] = {"elements": ["H", "C", "O"], "energy_unit": "kcal/mol"}
NUMBERS: dict[str, Any] = {"elements": (1, 6, 8), "energy_unit": KCAL_PER_MOL}
#: How to write a file, its format, what convert has to be told, and the reader itself.
SOURCES: dict[
    str, tuple[Callable[[Path], Path], str, dict[str, Any], Callable[[Path], Potential]]
] = {
    "torchmd-net": (
        torchmdnet_file,
        "torchmd-net",
        {**CHOSEN, "charges": [0, 1]},
        lambda path: torchmdnet.load_checkpoint(path, **NUMBERS),
    ),
    "schnetpack": (
        schnetpack_file,
        "schnetpack",
        CHOSEN,
        lambda path: schnetpack.load_checkpoint(path, **NUMBERS),
    ),
    "aimnet2": (
        aimnet2_file,
        "aimnet2",
        {"trust": True, "charges": [-1, 0]},
        lambda path: aimnet2.load(path, trust=True),
    ),
    "aimnet": (aimnet_file, "aimnet2", {"charges": [0]}, lambda path: aimnet2.load(path)),
    "neurochem": (neurochem_directory, "ani", {}, lambda path: ani.load(path)),
    "torchani": (torchani_file, "ani", {}, lambda path: ani.load(path)),
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_model_is_that_of_the_file(tmp_path: Path, name: str) -> None:
    write, kind, arguments, read = SOURCES[name]
    source = write(tmp_path)
    assert detect(source) == kind
    done = convert(source, tmp_path / "new" / "model-1", **arguments)
    assert done.directory == tmp_path / "new" / "model-1" and done.format == kind
    assert done.checks >= len(done.card["charges"])
    atoms = molecule("CH3CHO")
    expected = read(source).evaluate(AtomsBatch.from_atoms(atoms, dtype=torch.float32))
    calculator = NNPCalculator(done.directory, device="cpu", backend="eager")
    assert calculator.get_potential_energy(atoms) == pytest.approx(float(expected.energy), abs=1e-4)
    assert expected.forces is not None
    torch.testing.assert_close(
        torch.tensor(calculator.get_forces(atoms), dtype=torch.float32),
        expected.forces, rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    atoms.info["charge"] = 4
    with pytest.raises(ExtrapolationError, match="charge 4 is outside"):
        calculator.get_potential_energy(atoms)


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    source = torchani_file(tmp_path)
    card = {"licence": "MIT", "citation": None, "reference_method": "wB97X/6-31G(d)"}
    done = convert(source, tmp_path / "ani-small", card=card, options={"member": 1})
    assert done.card["elements"] == [1, 6, 8]
    assert (done.card["charges"], done.card["multiplicities"]) == ([0], [1])
    assert done.card["licence"] == "MIT" and done.card["reference_method"] == "wB97X/6-31G(d)"
    assert done.card["training_data"] == "unknown: the source does not say"
    assert "citation" not in done.card
    assert done.assumed == ("training_data unknown",)
    assert done.card["source"]["file"] == "ani.pt" and len(done.card["source"]["sha256"]) == 64
    assert done.card["config"]["members"] == 1
    assert json.loads((done.directory / "card.json").read_text()) == done.card


def test_units_and_precision(tmp_path: Path) -> None:
    source = schnetpack_file(tmp_path)
    atoms = molecule("H2O")
    energies = []
    for k, unit in enumerate(("eV", "Hartree", 2.0, "2.5")):
        done = convert(
            source, tmp_path / f"m{k}", elements=[1, 8], energy_unit=unit, dtype=torch.float64
        )
        assert done.card["dtype"] == "float64"
        calculator = NNPCalculator(done.directory, device="cpu", dtype="float64")
        energies.append(calculator.get_potential_energy(atoms))
    factors = [energy / energies[0] for energy in energies]
    assert factors == pytest.approx([1.0, HARTREE, 2.0, 2.5], rel=1e-12)


def test_a_name_goes_where_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_target("some") == Path("some")
    assert resolve_target("some/where") == Path("some/where")
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("NNPCALC_WEIGHTS", str(tmp_path / "models"))
    convert(torchani_file(tmp_path), "ani-small")
    assert NNPCalculator("ani-small", device="cpu").card["name"] == "ani-small"
    with pytest.raises(ValueError, match="holds a model already"):
        convert(tmp_path / "ani.pt", "ani-small")


def test_states_that_neutral_molecules_do_not_reach(tmp_path: Path) -> None:
    done = convert(
        schnetpack_file(tmp_path), tmp_path / "cations", **CHOSEN, charges=[1], multiplicities=[1]
    )
    (golden,) = done.card["golden"]
    assert (golden["charge"], golden["multiplicity"]) == (1, 1)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("torchmd-net", {"elements": None}, r"does not state the elements .* \(--elements H C N O"),
        ("torchmd-net", {"energy_unit": None}, r"does not state the unit of energy"),
        ("torchmd-net", {"charges": None}, r"depends on the charge, and .* \(--charges -1 0 1\)"),
        ("torchmd-net", {"elements": ["H", "Q"]}, "'Q' is neither a chemical symbol"),
        ("torchmd-net", {"elements": [1, 99]}, "not all among the atomic numbers"),
        ("schnetpack", {"energy_unit": "Rydberg"}, "energy_unit must be eV, Hartree, kcal/mol"),
        ("schnetpack", {"energy_unit": -1.0}, "energy_unit must be"),
        ("schnetpack", {"options": {"member": 1}}, "has no option 'member'; it has norm_offset"),
        ("schnetpack", {"options": {"elements": [1]}}, "has no option 'elements'"),
        ("aimnet2", {"trust": False}, "pass trust=True"),
        ("aimnet2", {"multiplicities": [1, 3]}, r"AIMNet2 knows the multiplicities \[1\] only"),
        ("aimnet2", {"elements": [1]}, "states its own elements: leave it out"),
        ("torchani", {"energy_unit": "eV"}, "states its own energy_unit"),
        ("torchani", {"charges": [0, 1]}, r"ANI2x knows the charges \[0\] only"),
        ("torchani", {"options": {"member": "last"}}, "member takes a number, True or False"),
        ("schnetpack", {"format": "torchmd-net", "charges": [0]}, "lacks 'hyper_parameters'"),
        ("torchani", {"format": "gromacs"}, "unknown format 'gromacs'; known are torchmd-net"),
        ("torchani", {"options": {"member": 7}}, "no member 7"),
    ],
)
def test_what_is_missing_is_asked_for(
    tmp_path: Path, name: str, changes: dict[str, Any], text: str
) -> None:
    write, _, arguments, _ = SOURCES[name]
    source = write(tmp_path)
    with pytest.raises(ValueError, match=text):
        convert(source, tmp_path / "new", **{**arguments, **changes})
    assert not (tmp_path / "new").exists()


class Whole(torch.nn.Module):
    pass


def test_files_of_no_known_format(tmp_path: Path) -> None:
    torch.save(Whole(), tmp_path / "best_model")
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("nothing")
    (tmp_path / "model.safetensors").write_bytes(bytes(16))
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("best_model", r"without running its code.*state_dict\(\)"),
        ("other.pt", "no format known here"),
        ("list.pt", "no format known here"),
        ("text.pt", "or is no file of PyTorch"),
        ("model.safetensors", "no other program's safetensors"),
        ("empty", r"holds no \.params file"),
        ("missing.pt", "does not exist"),
    ):
        with pytest.raises(ValueError, match=text):
            convert(tmp_path / name, tmp_path / "new")


def test_models_of_our_own(tmp_path: Path) -> None:
    done = convert(torchani_file(tmp_path), tmp_path / "new")
    for source in (done.directory, done.directory / "model.pt"):
        with pytest.raises(ValueError, match="is a model of nnpcalc already"):
            convert(source, tmp_path / "again")


def test_detecting_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="without running its code"):
        convert(tmp_path / "evil.pt", tmp_path / "new")
    assert not (tmp_path / "touched").exists()


# --- the command ----------------------------------------------------------------------------------


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = torchmdnet_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["convert", str(source), "--to", "small"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--elements H C N O" in error
    command += ["--elements", "H", "C", "O", "--energy-unit", "eV", "--charges", "-1", "0", "1"]
    assert main([*command, "--option", "layout"]) == 2
    assert "--option takes NAME=VALUE, not 'layout'" in capsys.readouterr().err
    assert main([*command, "--option", "layout=3", "--licence", "CC0", "--method", "xTB"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "tensornet of torchmd-net" in out[0] and "elements H C O, charges [-1, 0, 1]" in out[0]
    assert out[1].endswith("multiplicity 1 only, training_data unknown")
    assert out[-1] == "NNPCalculator('./small')"
    card = json.loads((tmp_path / "small" / "card.json").read_text())
    assert (card["licence"], card["reference_method"]) == ("CC0", "xTB")
    assert main(["verify", "./small"]) == 0
    monkeypatch.setenv("NNPCALC_WEIGHTS", str(tmp_path))
    command[3] = "other"
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "NNPCalculator('other')"
