"""Structure files of the commands: no molecule and no charge of a file is lost on the way."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from nnpcalc.cli import main
from nnpcalc.cli.common import add_structures, read_structures
from nnpcalc.cli.molfile import read_molfile, split_sdf

#: The charge is even: the parity of the electrons does not tell when it is lost.
OXIDE = """oxide
  a program

  1  0  0  0  0  0  0  0  0  0999 V2000
    0.1000    0.2000    0.3000 O   0  0  0  0  0  0  0  0  0  0  0  0
M  CHG  1   1  -2
M  END
"""
HYDROXIDE = """

hydroxide in the codes of the atom lines
  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  5  0  0  0  0  0  0  0  0  0  0
    0.0000    0.0000    0.9600 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
M  END
"""
OXYGEN = """


  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  5  0  0  0  0  0  0  0  0  0  0
    0.0000    0.0000    1.2000 O   0  3  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
M  RAD  2   1   2   2   2
M  END
"""
HYDROGENS = """

  V3000, with a line that goes on in the next
  0  0  0     0  0            999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 2 0 0 0 0
M  V30 BEGIN ATOM
M  V30 1 N 0 0 0 0 CHG=1 -
M  V30 RAD=2
M  V30 2 Cl 1.5 0 2 0 CHG=-2
M  V30 END ATOM
M  V30 END CTAB
M  END
"""
GAUSSIAN = """%mem=1GB
#p wb97xd/def2svp

a title

-2 1
O 0.1 0.2 0.3

"""


def taken(*arguments: str | Path) -> list[Atoms]:
    """What a command gets for its arguments."""
    parser = argparse.ArgumentParser()
    add_structures(parser)
    return read_structures(parser.parse_args([str(argument) for argument in arguments]))


def refused(*arguments: str | Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the callers look at the text)
        taken(*arguments)
    return str(caught.value)


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def states(structures: list[Atoms]) -> list[tuple[str, int | None, int | None]]:
    return [
        (str(atoms.symbols), atoms.info.get("charge"), atoms.info.get("spin"))
        for atoms in structures
    ]


# --- SDF and molfiles ----------------------------------------------------------------------------


def test_every_record_of_an_sdf(tmp_path: Path) -> None:
    records = [OXIDE, HYDROXIDE, OXYGEN, HYDROGENS]
    file = put(tmp_path / "a.sdf", "".join(f"{record}$$$$\n" for record in records))
    expected = [("O", -2, None), ("OH", -1, None), ("O2", 0, 3), ("NCl", -1, 2)]
    assert states(taken(file)) == expected
    np.testing.assert_allclose(taken(file)[0].positions, [[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(taken(file)[3].positions, [[0, 0, 0], [1.5, 0, 2]])
    assert states(taken(file, "--index", "-1")) == expected[-1:]
    assert states(taken(file, "--index", "1:3")) == expected[1:3]
    assert "'4'" in refused(file, "--index", "4") and "index" in refused(file, "--index", "x")
    for ending, text in [("\r\n", file.read_text()), ("\n", file.read_text() + "\n\n")]:
        other = tmp_path / "b.SDF"
        other.write_bytes(text.replace("\n", ending).encode())
        assert states(taken(other)) == expected
    with gzip.open(tmp_path / "c.sdf.gz", "wt") as opened:
        opened.write(file.read_text())
    assert states(taken(tmp_path / "c.sdf.gz")) == expected


@pytest.mark.parametrize("text", [OXIDE, OXIDE.replace("M  END\n", ""), f"{OXIDE}\n$$$$\n"])
def test_molfile(tmp_path: Path, text: str) -> None:
    assert states(taken(put(tmp_path / "a.mol", text))) == [("O", -2, None)]
    assert states(taken(tmp_path / "a.mol", "--charge", "0")) == [("O", 0, None)]


def test_rows_of_the_energy_command(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{HYDROXIDE}$$$$\n" + HYDROXIDE.replace("O   0  5", "O   0  4") + "$$$$\n"
    file = put(tmp_path / "a.sdf", text)
    assert main(["energy", str(file), "--model", "small", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["charge"], r["multiplicity"]) for r in records] == [(-1, 1), (0, 2)]


def test_molfiles_of_careless_programs() -> None:
    """Columns that are not the format's, numbers that touch, a line too few at the top."""
    loose = OXIDE.replace("    0.1000    0.2000    0.3000 O ", " 0.1 0.2 0.3 O")
    assert read_molfile(loose).positions == [(0.1, 0.2, 0.3)]
    tight = OXIDE.replace("    0.1000    0.2000    0.3000", "-1000.1000-1000.2000-1000.3000")
    assert read_molfile(tight).positions == [(-1000.1, -1000.2, -1000.3)]
    assert read_molfile(OXIDE.replace("oxide\n", "", 1)).charge == -2
    assert read_molfile(OXIDE.replace("V2000", "")).charge == -2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (" O  ", " R# ", "atom 1 is 'R#'"),
        ("0.2000 ", "0.2x00 ", "atom 1 cannot be read"),
        ("  1  0  0", "  9  0  0", "of 9 atoms"),
        ("  1   1  -2", "  1   2  -2", "names atom 2"),
        ("  1   1  -2", "  2   1  -2", "cannot be read"),
        ("CHG  1   1  -2", "RAD  1   1   7", "7 is no code"),
        ("  1  0  0", "  x  0  0", "the number of atoms"),
        ("M  END\n", f"M  END\n{HYDROXIDE}", "$$$$"),
        ("O   0  0  0  0  0  0  0  0  0  0  0  0\nM  CHG  1   1  -2", "O   0 -2", "-2 is no code"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert OXIDE.count(old) == 1
    file = put(tmp_path / "a.sdf", f"{OXIDE}$$$$\n{OXIDE.replace(old, new)}$$$$\n")
    error = refused(file)
    assert "a.sdf, structure at --index 1 cannot be read" in error and words in error
    assert len(taken(file, "--index", "0")) == 1  # the other is none of its business


def test_sdf_data_that_contradict(tmp_path: Path) -> None:
    """A field for the charge is no news if it agrees, and an error otherwise."""
    field = ">  <PUBCHEM_TOTAL_CHARGE>  (1)\n{}\n\n>  <note>\nM  CHG  1   1   5\n\n$$$$\n"
    assert states(taken(put(tmp_path / "a.sdf", OXIDE + field.format(-2)))) == [("O", -2, None)]
    error = refused(put(tmp_path / "a.sdf", OXIDE + field.format(0)))
    assert "PUBCHEM_TOTAL_CHARGE" in error and "-2" in error and "--charge" in error
    assert states(taken(tmp_path / "a.sdf", "--charge", "0")) == [("O", 0, None)]
    file = put(tmp_path / "b.sdf", f"{OXIDE}>  <multiplicity>\n3\n\n$$$$\n")
    assert "--spin" in refused(file)
    assert states(taken(file, "--spin", "3")) == [("O", -2, 3)]


@pytest.mark.parametrize("v3000", [False, True])
def test_molfiles_against_rdkit(v3000: bool) -> None:
    Chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import rdDistGeom

    smiles = (
        "[O-]C(=O)CC(=O)[O-]", "C[NH3+]", "[CH3]", "[O][O]", "[Na+].[Cl-]", "[NH3+]CC(=O)[O-]",
        "CC[CH]C", "C[N+](=O)[O-]", "[2H]OC", "BrC(Cl)I", "[O-2]", "[NH3+][CH2]",
    )  # fmt: skip
    molecules = [Chem.AddHs(Chem.MolFromSmiles(text)) for text in smiles]
    for one in molecules:
        assert rdDistGeom.EmbedMolecule(one, randomSeed=1) == 0
    records = split_sdf(
        "".join(f"{Chem.MolToMolBlock(one, forceV3000=v3000)}$$$$\n" for one in molecules)
    )
    for one, record in zip(molecules, records, strict=True):
        found = read_molfile(record)
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in one.GetAtoms())
        assert found.symbols == [atom.GetSymbol() for atom in one.GetAtoms()]
        assert found.charge == Chem.GetFormalCharge(one)
        assert found.multiplicity == (1 + unpaired if unpaired else None)
        np.testing.assert_allclose(found.positions, one.GetConformer().GetPositions(), atol=6e-5)


# --- Gaussian ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["-2 1", " -2,1", "-2, 1  ! the dianion", "-2 1 -2 1 0 1"])
@pytest.mark.parametrize("suffix", ["gjf", "com"])
def test_gaussian_input(tmp_path: Path, state: str, suffix: str) -> None:
    file = put(tmp_path / f"a.{suffix}", GAUSSIAN.replace("-2 1", state))
    assert states(taken(file)) == [("O", -2, 1)]
    np.testing.assert_allclose(taken(file)[0].positions, [[0.1, 0.2, 0.3]])
    assert states(taken(file, "--charge", "0", "--spin", "3")) == [("O", 0, 3)]


def test_gaussian_jobs(tmp_path: Path) -> None:
    """What follows --Link1-- is another molecule, unless its geometry is that of the one before."""
    radical = GAUSSIAN.replace("-2 1\nO", "0 2\nH").replace("a title", "1 1")
    again = "# freq geom=check\n\na title\n\n-2 1\n\n"
    text = f"{GAUSSIAN}--Link1--\n{again}\n--link1--\n{radical}1 2\n3 4\n\n"
    assert states(taken(put(tmp_path / "a.gjf", text))) == [("O", -2, 1), ("H", 0, 2)]
    error = refused(put(tmp_path / "a.gjf", GAUSSIAN.replace("-2 1", "-2")))
    assert "a.gjf" in error and "charge and multiplicity" in error


def test_gaussian_places_in_whole_numbers(tmp_path: Path) -> None:
    """ASE loses such atoms, or takes them for a Z-matrix, which is read as well."""
    file = put(tmp_path / "a.gjf", GAUSSIAN.replace("O 0.1 0.2 0.3", "8 0 0 0\nH 0 0 1\nH,0,1,0"))
    (atoms,) = taken(file)
    assert str(atoms.symbols) == "OH2" and atoms.positions.tolist()[1:] == [[0, 0, 1], [0, 1, 0]]
    put(file, GAUSSIAN.replace("O 0.1 0.2 0.3", "O\nH 1 0.96\nH 1 0.96 2 104.5"))
    assert taken(file)[0].get_angle(1, 0, 2) == pytest.approx(104.5)


# --- XYZ -----------------------------------------------------------------------------------------


def test_comment_of_two_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "1\n-2 1\nO 0 0 0\n1\n 1 1 \nH 0 0 0\n1\n7\nO 0 0 0\n1\n1 2 scan\nO 0 0 0\n"
    expected = [("O", -2, 1), ("H", 1, 1), ("O", None, None), ("O", None, None)]
    assert states(taken(put(tmp_path / "a.xyz", text))) == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert states(taken("-")) == expected


def test_impossible_comment(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(tmp_path / "a.xyz", "1\n0 2\nO 0 0 0\n")
    assert main(["energy", str(file), "--model", "small"]) == 2
    assert "multiplicity 2" in capsys.readouterr().err


def test_empty_lines_between_frames(tmp_path: Path) -> None:
    file = put(tmp_path / "a.xyz", "1\n\nO 0 0 0\n\n1\ncharge=-2\nO 0 0 0\n\n\n")
    assert states(taken(file)) == [("O", None, None), ("O", -2, None)]
    error = refused(put(tmp_path / "a.xyz", "1\n\nO 0 0 0\nO 0 0 1\n"))
    assert "line 4" in error and "'O 0 0 1'" in error


@pytest.mark.parametrize(
    "key",
    ["Charge", "q", "net_charge", "tot_charge", "Total_Charge", "molecular_charge", "netCharge"],
)
def test_other_names_of_the_charge(tmp_path: Path, key: str) -> None:
    file = put(tmp_path / "a.xyz", f"1\ncharge=-2\nO 0 0 0\n1\n{key}=-2\nO 0 0 0\n")
    error = refused(file)
    assert "a.xyz, structure at --index 1" in error and repr(key) in error
    assert "charge=" in error and "--charge" in error
    found = taken(file, "--charge", "-2")
    assert states(found) == [("O", -2, None)] * 2 and key not in found[1].info
    assert "charge=" in refused(file, "--spin", "1")  # says nothing about the charge
    both = put(tmp_path / "b.xyz", f"1\ncharge=-2 {key}=-2\nO 0 0 0\n")
    assert states(taken(both)) == [("O", -2, None)]
    assert "remove" in refused(put(both, f"1\ncharge=0 {key}=-2\nO 0 0 0\n"))


@pytest.mark.parametrize(
    "key", ["Spin", "Multiplicity", "total_spin", "uhf", "SPIN_MULTIPLICITY", "unpaired_electrons"]
)
def test_other_names_of_the_spin(tmp_path: Path, key: str) -> None:
    file = put(tmp_path / "a.xyz", f"1\ncharge=0 {key}=3\nO 0 0 0\n")
    error = refused(file)
    assert "a.xyz" in error and repr(key) in error and "spin=" in error and "--spin" in error
    assert states(taken(file, "--spin", "3")) == [("O", 0, 3)]
    put(file, f"1\ncharge=0 spin=3 {key}=2\nO 0 0 0\n")
    assert states(taken(file)) == [("O", 0, 3)]


@pytest.mark.parametrize("comment", ["Charge: -2", "Charge -2 of oxide", "Charge = -2", "Q=-2"])
def test_charges_in_words(tmp_path: Path, comment: str) -> None:
    assert "--charge" in refused(put(tmp_path / "a.xyz", f"1\n{comment}\nO 0 0 0\n"))


@pytest.mark.parametrize(
    "comment", ["Charge transfer, UHF energy -74.8", 'q="0.1 0.2 0.3"', "charge1=2", "charge=-2.0"]
)
def test_comments_that_say_nothing_else(tmp_path: Path, comment: str) -> None:
    assert len(taken(put(tmp_path / "a.xyz", f"1\n{comment}\nO 0 0 0\n"))) == 1


# --- other formats -------------------------------------------------------------------------------

PDB = "HETATM    1  O   UNL     1    {:8.3f}   1.300  -0.770  1.00  0.00          {:>2}{}\n"


@pytest.mark.parametrize("charge", ["2-", "-2"])
def test_pdb_charges(tmp_path: Path, charge: str) -> None:
    lines = [PDB.format(0, "O", charge), PDB.format(2, "NA", "1+"), PDB.format(4, "NE", "  ")]
    text = "".join(lines)
    assert states(taken(put(tmp_path / "a.pdb", text))) == [("ONaNe", -1, None)]
    assert states(taken(put(tmp_path / "a.pdb", lines[2]))) == [("Ne", None, None)]
    models = f"CRYST1   10.000   10.000   10.000  90.00  90.00  90.00 P 1\nMODEL 1\n{text}ENDMDL\n"
    models += f"MODEL 2\n{lines[0]}ENDMDL\nEND\n"
    found = taken(put(tmp_path / "a.pdb", models))
    assert states(found) == [("ONaNe", -1, None), ("O", -2, None)]  # END is no third, without atoms
    assert all(atoms.pbc.all() and atoms.cell.volume > 999 for atoms in found)
    assert states(taken(tmp_path / "a.pdb", "--index", "-1")) == [("O", -2, None)]
    error = refused(put(tmp_path / "a.pdb", lines[0] + PDB.format(2, "O", "1x")))
    assert "a.pdb" in error and "79-80" in error and "'1x'" in error
    old = lines[0][:72] + "1ABC  12\n"  # line numbers, as before 1996
    assert states(taken(put(tmp_path / "a.pdb", old)))[0][1] is None


def test_databases(tmp_path: Path) -> None:
    for name in ("a.db", "a.json"):
        with ase.db.connect(tmp_path / name) as database:
            database.write(Atoms("O"), charge=-2, spin=1)
            database.write(Atoms("O"), total_charge=-2, name="second")
            database.write(Atoms("O"))
        expected = [("O", -2, 1), ("O", None, None), ("O", None, None)]
        found = taken(tmp_path / name)
        assert states(found) == expected and found[1].info["total_charge"] == -2
        assert states(taken(tmp_path / name, "--index", "0")) == expected[:1]
        assert states(taken(tmp_path / name, "--index", "name=second")) == expected[1:2]
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(Atoms("O"), net_charge=-2)
    assert "row 4" in refused(tmp_path / "a.db") and "net_charge" in refused(tmp_path / "a.db")


def test_trajectories(tmp_path: Path) -> None:
    frames = [molecule("H2O"), molecule("H2O")]
    frames[0].info["charge"] = 2
    frames[1].info["Charge"] = 2
    write(tmp_path / "a.traj", frames)
    assert "'Charge'" in refused(tmp_path / "a.traj")
    assert states(taken(tmp_path / "a.traj", "--index", "0")) == [("OH2", 2, None)]


def test_formats_of_one_structure_without_a_charge(tmp_path: Path) -> None:
    write(tmp_path / "a.gen", molecule("H2O"), format="gen")
    for index in (":", "-1", "0", "0:1"):
        assert states(taken(tmp_path / "a.gen", "--index", index)) == [("OH2", None, None)]
    assert "index" in refused(tmp_path / "a.gen", "--index", "1")


def test_what_opt_writes_says_it_all(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(tmp_path / "a.sdf", f"{HYDROXIDE}$$$$\n{HYDROXIDE}$$$$\n")
    out = tmp_path / "b.xyz"
    main(["opt", str(file), "--model", "small", "--steps", "1", "--output", str(out)])
    assert [atoms.info["charge"] for atoms in read(out, ":")] == [-1, -1]
    capsys.readouterr()


def test_reports_take_any_words(tmp_path: Path) -> None:
    """A page computes nothing: whatever is said of a charge is no hindrance."""
    from nnpcalc.cli.structures import read_file

    file = put(tmp_path / "a.xyz", "1\nCharge=-2\nO 0 0 0\n")
    assert read_file(str(file))[0].info["Charge"] == -2


def test_help_says_where_the_charge_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["energy", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("charge= and spin=", "SDF", "PDB", "Gaussian", "two integers"):
        assert words in shown
