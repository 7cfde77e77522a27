"""The corpus extension: ions, the guard of the validation set, conformers, shards that resume."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from torch import Tensor

from nnpcalc.train.data import read_corpus

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdMolHash

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "datasets"))

import spice_extension as extension
from spice_extension_conformers import (
    Failed,
    Langevin,
    conformers,
    force_field,
    same_bonds,
    spread_fragments,
)
from spice_extension_ions import ionise, sites, skeleton, skeletons, unseen

MOLECULES = [
    "CC(=O)O",
    "NCC(=O)O",
    "NCCN",
    "OC(=O)CCC(=O)O",
    "OC(=O)c1ccncc1",
    "CSCC[C@H](N)C(=O)O",
    "CP(=O)(O)OC",
    "OB(O)c1ccccc1S",
    "C[Si](C)(O)CCN",
    "Clc1ccc(O)cc1Br",
]


class FakeTeacher(torch.nn.Module):
    """A spring to the origin; bromine is torn away, and nobody is sure about iodine."""

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        coord, numbers, charge = data["coord"], data["numbers"], data["charge"]
        real = (numbers > 0).to(coord.dtype)
        forces = -0.1 * coord * real.unsqueeze(-1)
        forces = torch.where((numbers == 35).unsqueeze(-1), torch.full_like(forces, 100.0), forces)
        doubt = torch.where(numbers == 53, torch.full_like(real, 9.0), torch.full_like(real, 0.1))
        return {
            "energy": -1000.0 * numbers.sum(dim=1).double() + charge.double(),
            "energy_std": torch.full_like(charge, 0.01),
            "forces": forces,
            "forces_std": (doubt * real).unsqueeze(-1).expand_as(forces),
            "charges": (charge / real.sum(dim=1)).unsqueeze(1) * real,
        }


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "fake.jpt"
    torch.jit.script(FakeTeacher()).save(str(path))
    return path


def ions(smiles: str, charge: int) -> Counter[str | None]:
    """What 40 seeds make of a molecule."""
    return Counter(ionise(smiles, charge, np.random.default_rng(k))[0] for k in range(40))


@pytest.mark.parametrize(
    ("smiles", "charge", "ion"),
    [
        ("CC(=O)O", -1, "CC(=O)[O-]"),
        ("NCC(=O)O", -1, "NCC(=O)[O-]"),
        ("NCC(=O)O", +1, "[NH3+]CC(=O)O"),
        ("NCCN", +2, "[NH3+]CC[NH3+]"),
        ("OC(=O)CCC(=O)O", -2, "O=C([O-])CCC(=O)[O-]"),
        ("[O-]C(=O)CCC(=O)O", -2, "O=C([O-])CCC(=O)[O-]"),
        ("c1ccncc1", +1, "c1cc[nH+]cc1"),
        ("c1c[nH]cn1", -1, "c1c[n-]cn1"),
        ("NC(N)=N", +1, "NC(N)=[NH2+]"),
        ("Oc1ccccc1", -1, "[O-]c1ccccc1"),
        ("CS", -1, "C[S-]"),
        ("CSC", +1, "C[SH+]C"),
        ("CP(C)C", +1, "C[PH+](C)C"),
        ("CC(C)=O", -1, "C=C(C)[O-]"),
        ("CC(C)=O", +1, "CC(C)=[OH+]"),
        ("C[N+](=O)[O-]", -1, "C=[N+]([O-])[O-]"),
        ("CC#N", -1, "C=C=[N-]"),
        ("C[N+](C)(C)C", +1, "C[N+](C)(C)C"),
        ("[CH3:1][C:2](=[O:3])[O:4][H:5]", -1, "CC(=O)[O-]"),
    ],
)
def test_the_commonest_ion_is_the_chemists(smiles: str, charge: int, ion: str) -> None:
    assert ions(smiles, charge).most_common(1)[0][0] == Chem.CanonSmiles(ion)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [("c1ccccc1", -1), ("C", +1), ("NN", +2), ("CC(=O)O", -3), ("not a molecule", 1)],
)
def test_no_site_no_ion(smiles: str, charge: int) -> None:
    assert ionise(smiles, charge, np.random.default_rng(0)) == (None, 0.0)


@pytest.mark.parametrize("charge", [-2, -1, 1, 2])
@pytest.mark.parametrize("smiles", MOLECULES)
def test_every_ion_has_its_charge_and_the_same_heavy_atoms(smiles: str, charge: int) -> None:
    def hydrogens(mol: Chem.Mol) -> int:
        return sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())

    parent = Chem.MolFromSmiles(smiles)
    for ion in ions(smiles, charge):
        if ion is None:
            continue
        mol = Chem.MolFromSmiles(ion)
        assert Chem.GetFormalCharge(mol) == charge
        assert hydrogens(mol) == hydrogens(parent) + charge
        assert not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
        assert skeleton(ion) == skeleton(smiles)


def test_two_sites_keep_apart() -> None:
    bonds = Chem.GetDistanceMatrix(Chem.MolFromSmiles("NCCN"))
    assert bonds[0, 3] == 3  # the closest pair that is allowed
    assert ions("NCN", +2) == {None: 40}
    far = ions("NCCCCCCCCN", +2)
    assert far == {"[NH3+]CCCCCCCC[NH3+]": 40}


def test_sites_are_found_once_per_atom() -> None:
    for sign in (-1, 1):
        for smiles in MOLECULES:
            found = [site.atoms[0] for site in sites(Chem.MolFromSmiles(smiles), sign)]
            assert len(found) == len(set(found))


def test_skeleton_sees_connectivity_only() -> None:
    same = ["CC(=O)O", "CC(=O)[O-]", "CC(O)=[OH+]", "CC(O)O", "C=C(O)O", "[CH3:1]C([O:2][H])=O"]
    assert len({skeleton(smiles) for smiles in same}) == 1
    assert skeleton("C[C@H](N)O") == skeleton("C[C@@H](N)O")
    assert skeleton("c1ccccc1") == skeleton("C1CCCCC1")
    others = ["CC(=O)O", "COC=O", "OCC=O", "CC(=O)N", "CC(=O)O.O"]
    assert len({skeleton(smiles) for smiles in others}) == len(others)


def test_skeleton_agrees_with_the_element_graph_of_rdkit() -> None:
    # Neutral isomers and ions: whatever RDKit's hash tells apart, ours does, and nothing else.
    pool = [*MOLECULES, "COC=O", "CNC(=O)O", "OCC(=O)N", "NCCCN", "CC(N)N"]
    pool += [ion for s in MOLECULES for q in (-1, 1) for ion in ions(s, q) if ion]

    def element_graph(smiles: str) -> str:
        mol = Chem.MolFromSmiles(smiles)
        Chem.RemoveStereochemistry(mol)  # which the hash sees
        return rdMolHash.MolHash(mol, rdMolHash.HashFunction.ElementGraph)

    ours, theirs = [skeleton(s) for s in pool], [element_graph(s) for s in pool]
    assert len(set(ours)) == len(set(theirs)) == len(set(zip(ours, theirs, strict=True)))


def test_the_guard_leaves_out_all_forms_of_a_molecule() -> None:
    excluded = skeletons(["OC(=O)CC(=O)O", "c1ccncc1"])
    given = ["[O-]C(=O)CC(=O)[O-]", "c1cc[nH+]cc1", "C1CCNCC1", "CCN", "broken("]
    assert list(unseen(given, excluded)) == ["CCN"]
    with pytest.raises(ValueError, match=r"broken\(.* not valid SMILES"):
        skeletons(["CCO", "broken("])


@pytest.mark.parametrize("smiles", ["CC(=O)[O-]", "O.[NH3+]CCO", "OB([O-])c1ccccc1"])
def test_conformers_are_of_the_molecule(smiles: str) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    numbers, frames = conformers(smiles, 6, np.random.default_rng(1))
    again = conformers(smiles, 6, np.random.default_rng(1))[1]
    assert numbers.tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    assert 1 <= len(frames) <= 6
    for frame, copy in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame, copy)
        assert same_bonds(mol, frame)
    assert np.abs(frames[0] - frames[-1]).max() > 0.01


@pytest.mark.parametrize(
    ("smiles", "reason"), [("C1#CC1", "not embedded"), ("[H][H]", "force field failed")]
)
def test_a_molecule_that_rdkit_cannot_build_is_refused(smiles: str, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        conformers(smiles, 2, np.random.default_rng(0))


def test_the_sampler_has_the_gradient_and_the_temperature() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CC[NH3+]"))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    field, is_mmff = force_field(mol)
    assert is_mmff
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    start = np.array(mol.GetConformer().GetPositions())
    sampler = Langevin(field, numbers, start, np.random.default_rng(2))
    ratios = []
    for _ in range(150):
        frame = sampler.run(20)
        ratios.append(np.mean((sampler.velocities / sampler.spread) ** 2))
    assert 0.92 < np.mean(ratios) < 1.08  # 150 frames of 33 velocities: 0.03 is one sigma
    gradient = sampler.gradient
    numerical = np.empty_like(gradient)
    for k in range(gradient.size):
        energies = []
        for step in (1e-5, -1e-5):
            moved = frame.ravel().copy()
            moved[k] += step
            energies.append(field.CalcEnergy(moved.tolist()))
        numerical[k] = (energies[0] - energies[1]) / 2e-5
    np.testing.assert_allclose(gradient, numerical, atol=1e-4)


def test_fragments_touch_but_do_not_overlap() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1.CC(=O)[O-].O"))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    spread_fragments(mol, np.random.default_rng(3))
    positions = np.array(mol.GetConformer().GetPositions())
    for fragment in Chem.GetMolFrags(mol):
        others = [k for k in range(len(positions)) if k not in fragment]
        between = np.linalg.norm(positions[list(fragment)][:, None] - positions[others], axis=2)
        assert 1.7 < between.min() < 5.5


def test_fragments_are_not_threaded_through_each_other() -> None:
    # Embedded on top of each other, they get stuck at a median of 1.8 Å in place of 3.0 Å.
    smiles = "c1ccc2ccccc2c1.[NH3+]CCCCC[NH3+]"
    one, two = map(list, Chem.GetMolFrags(Chem.AddHs(Chem.MolFromSmiles(smiles))))
    closest = []
    for seed in range(6):
        (frame,) = conformers(smiles, 1, np.random.default_rng(seed))[1]
        closest.append(np.linalg.norm(frame[one][:, None] - frame[two], axis=2).min())
    assert np.median(closest) > 2.3


def run(teacher: Path, out: Path, smiles: list[str], *more: str) -> None:
    source = out.parent / "molecules.smi"
    source.write_text("\n".join(smiles) + "\n")
    extension.main(["--teacher", str(teacher), "--smiles", str(source), "--out", str(out), *more])


IONS = ("--ionise", "--charges=-1,1:20,2", "--per-molecule", "3", "--shard", "12", "--seed", "5")


def arrays(out: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: dict(np.load(path)) for path in sorted(out.glob("part-*.npz"))}


def test_the_result_is_a_corpus(teacher: Path, tmp_path: Path) -> None:
    run(teacher, tmp_path / "out", MOLECULES, *IONS)
    paths = sorted((tmp_path / "out").glob("part-*.npz"))
    assert len(paths) > 1
    train, validation = read_corpus(paths)
    assert len(validation) == 0
    assert set(train.charge) == {-1, 1, 2}
    assert set(train.source) == {extension.IONS}
    names = (tmp_path / "out" / "molecules.txt").read_text().splitlines()
    assert (train.charge == 1).sum() <= 21
    for k in range(len(train)):
        atoms = slice(train.offsets[k], train.offsets[k + 1])
        mol = Chem.AddHs(Chem.MolFromSmiles(names[train.molecule[k]]))
        assert [a.GetAtomicNum() for a in mol.GetAtoms()] == train.numbers[atoms].tolist()
        assert Chem.GetFormalCharge(mol) == train.charge[k]
        # float16 keeps three digits
        expected = -0.1 * train.positions[atoms]
        np.testing.assert_allclose(train.forces[atoms], expected, rtol=1e-3, atol=1e-3)
        total = -1000.0 * train.numbers[atoms].sum(dtype=int) + train.charge[k]
        assert train.energy[k] == total
    for part in arrays(tmp_path / "out").values():
        m, n = part["n_atoms"].size, part["n_atoms"].sum()
        assert m <= 12
        types = {"n_atoms": "int32", "charge": "int8", "energy": "float64", "source": "uint8",
                 "energy_std": "float32", "forces_std": "float32", "molecule": "int32",
                 "split": "uint8", "numbers": "uint8", "positions": "float32",
                 "forces": "float16", "charges": "float16"}  # fmt: skip
        assert {name: str(array.dtype) for name, array in part.items()} == types
        assert part["positions"].shape == part["forces"].shape == (n, 3)
        assert part["charges"].shape == (n,)
        np.testing.assert_allclose(part["forces_std"], 0.1, rtol=1e-6)


def test_a_stopped_run_goes_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(teacher, tmp_path / "whole", MOLECULES, *IONS)
    whole = arrays(tmp_path / "whole")

    label, calls = extension.label, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return label(*args)

    out = tmp_path / "stopped"
    monkeypatch.setattr(extension, "label", stops)
    with pytest.raises(KeyboardInterrupt):
        run(teacher, out, MOLECULES, *IONS)
    assert sorted(path.name for path in out.iterdir()) == [
        "molecules.txt", "part-0000.json", "part-0000.npz", "run.json"
    ]  # fmt: skip
    monkeypatch.setattr(extension, "label", label)
    first = (out / "part-0000.npz").stat().st_mtime_ns
    run(teacher, out, MOLECULES, *IONS)
    assert (out / "part-0000.npz").stat().st_mtime_ns == first
    resumed = arrays(out)
    assert resumed.keys() == whole.keys()
    for name, part in whole.items():
        for key, array in part.items():
            np.testing.assert_array_equal(resumed[name][key], array)


def test_a_directory_holds_one_run(teacher: Path, tmp_path: Path) -> None:
    run(teacher, tmp_path / "out", MOLECULES, *IONS)
    with pytest.raises(ValueError, match="other options: name another directory"):
        run(teacher, tmp_path / "out", MOLECULES, *IONS[:-1], "6")


def test_excluded_molecules_do_not_occur(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "excluded.smi").write_text("OC(O)CCC(O)O\nNCC(=O)[O-]\n")
    run(teacher, tmp_path / "out", MOLECULES, *IONS, "--exclude", str(tmp_path / "excluded.smi"))
    made = (tmp_path / "out" / "molecules.txt").read_text().split()
    assert made
    bare = {skeleton(smiles) for smiles in made}
    assert skeleton("CC(=O)O") in bare
    assert not bare & {skeleton("OC(=O)CCC(=O)O"), skeleton("NCC(=O)O")}


def test_what_is_left_out_is_counted(teacher: Path, tmp_path: Path) -> None:
    run(teacher, tmp_path / "out", ["CBr", "CI", "CO", "[Na+]", "[CH3]"], "--per-molecule", "4")
    (part,) = arrays(tmp_path / "out").values()
    assert set(part["numbers"]) == {1, 6, 8}
    summary = (tmp_path / "out" / "part-0000.json").read_text()
    assert '"force too large": 4' in summary
    assert '"ensemble disagrees": 4' in summary
    assert set(part["source"]) == {extension.GIVEN}
    made = (tmp_path / "out" / "molecules.txt").read_text().split()
    assert sorted(made) == ["CBr", "CI", "CO"]


def labelled(teacher: Path, tmp_path: Path, frames: list[Atoms], *more: str) -> Path:
    write(tmp_path / "frames.xyz", frames)
    out = tmp_path / "out"
    given = ["--teacher", str(teacher), "--structures", str(tmp_path / "frames.xyz")]
    extension.main([*given, "--out", str(out), *more])
    return out


def frame(symbols: str, spacing: float = 1.0, **info) -> Atoms:
    n = len(Atoms(symbols))
    positions = [[spacing * k, 0.1 * k, 0] for k in range(n)]
    return Atoms(symbols, positions=positions, info=info)


def test_given_structures_are_labelled(teacher: Path, tmp_path: Path) -> None:
    frames = [
        frame("OH2"),
        frame("OH", charge=-1),
        frame("OH2", spacing=0.3),
        frame("NH4", charge=1),
    ]
    out = labelled(teacher, tmp_path, frames, "--shard", "2", "--first-molecule", "70")
    train, _ = read_corpus(sorted(out.glob("part-*.npz")))
    assert train.charge.tolist() == [0, -1, 1]
    assert train.n_atoms.tolist() == [3, 2, 5]
    assert (out / "molecules.txt").read_text().split() == ["H2O", "HO", "H4N"]
    assert train.molecule.tolist() == [70, 71, 72]
    np.testing.assert_allclose(train.positions[3:5], frames[1].positions, atol=1e-6)
    assert '"atoms too close": 1' in (out / "part-0001.json").read_text()


def test_other_structures_need_another_directory(teacher: Path, tmp_path: Path) -> None:
    labelled(teacher, tmp_path, [frame("OH2")])
    labelled(teacher, tmp_path, [frame("OH2")])
    with pytest.raises(ValueError, match="other options"):
        labelled(teacher, tmp_path, [frame("OH2", spacing=1.1)])


def test_structures_obey_the_guard(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "excluded.smi").write_text("C\n")
    frames = [frame("CH4", smiles="C"), frame("NH3", smiles="N")]
    more = ("--exclude", str(tmp_path / "excluded.smi"))
    out = labelled(teacher, tmp_path, frames, *more)
    assert (out / "molecules.txt").read_text() == "N\n"
    with pytest.raises(ValueError, match="frame 0 has no smiles="):
        labelled(teacher, tmp_path, [frame("CH4")], *more)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (frame("OH"), "frame 1 has an odd number of electrons"),
        (frame("NaCl"), r"does not know Na \(atom 0\)"),
        (frame("OH2", spin=3), "frame 1 has spin=3"),
        (frame("OH2", charge=0.5), "frame 1 has the charge 0.5"),
        (Atoms("He", cell=[5, 5, 5], pbc=True), "frame 1 is periodic"),
    ],
)
def test_wrong_structures_are_named(
    teacher: Path, tmp_path: Path, wrong: Atoms, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        labelled(teacher, tmp_path, [frame("OH2"), wrong])


def test_errors_of_the_command_line(teacher: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match="there is no teacher"):
        run(tmp_path / "absent.jpt", tmp_path / "out", ["C"])
    with pytest.raises(ValueError, match="nothing to label"):
        run(teacher, tmp_path / "out", ["c1ccccc1"], "--ionise", "--charges=-1")
    with pytest.raises(ValueError, match="at least 1"):
        run(teacher, tmp_path / "out", ["C"], "--shard", "0")
    with pytest.raises(ValueError, match="--ionise makes ions of --smiles"):
        labelled(teacher, tmp_path, [frame("OH2")], "--ionise")
    with pytest.raises(SystemExit):
        run(teacher, tmp_path / "out", ["C"], "--charges=a:b")
    assert "CHARGE:CONFORMERS" in capsys.readouterr().err
