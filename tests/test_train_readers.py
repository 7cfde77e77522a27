"""What the readers make of files, with ASE's units and ASE's writer as the other opinion."""

import dataclasses
import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from nnpcalc.train.data import read_corpus
from nnpcalc.train.read_hdf5 import force_unit
from nnpcalc.train.readers import draw, matching, read_dataset, read_files
from train_corpus import structures, write_corpus


def water(**info):
    """A labelled water molecule."""
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], info={"energy": -2079.5})
    atoms.info.update(info)
    atoms.arrays["forces"] = np.arange(9.0).reshape(3, 3)
    return atoms


def test_a_pattern_stands_for_files(tmp_path):
    for name in ("b-1.xyz", "b-0.xyz", "c.xyz", "d[1].xyz"):
        write(tmp_path / name, water(name=name), format="extxyz")
    assert matching(tmp_path / "b-*.xyz") == [str(tmp_path / f"b-{k}.xyz") for k in (0, 1)]
    assert len(read_files([tmp_path / "b-?.xyz", tmp_path / "c.xyz"])[0]) == 3
    assert len(read_files([tmp_path / "d[1].xyz"])[0]) == 1  # a file of this very name
    with pytest.raises(FileNotFoundError, match=r"no file fits .*e-\*\.xyz"):
        read_files([tmp_path / "e-*.xyz"])


# --- extended XYZ ----------------------------------------------------------------------------


def test_xyz_holds_what_the_npz_corpus_holds(tmp_path):
    write_corpus(tmp_path)
    write(tmp_path / "tiny.xyz", structures(), format="extxyz")
    for expected, found in zip(
        read_corpus([tmp_path / "tiny.npz"]), read_dataset([tmp_path / "tiny.xyz"]), strict=True
    ):
        assert len(expected) == len(found) > 0
        for field in dataclasses.fields(expected):
            a, b = getattr(expected, field.name), getattr(found, field.name)
            if field.name == "molecule":  # a name became a number
                assert np.unique(a).size == np.unique(b).size
            elif field.name == "source":
                assert a.astype(str).tolist() == b.tolist()
            elif a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, atol=2e-7, err_msg=field.name)
            else:
                assert np.array_equal(a, b), field.name


def test_labels_of_a_calculator_and_of_a_trajectory(tmp_path):
    atoms = water(charge=1, spin=2)
    atoms.info.pop("energy")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=atoms.arrays.pop("forces"))
    for name in ("a.xyz", "a.traj"):
        write(tmp_path / name, atoms)
        dataset, split = read_files([tmp_path / name])
        assert dataset.energy.tolist() == [-1.5] and split.tolist() == [-1]
        assert dataset.forces.tolist() == np.arange(9.0).reshape(3, 3).tolist()
        assert (dataset.charge[0], dataset.multiplicity[0]) == (1, 2)
        assert np.isnan(dataset.partial_charges).all()


def test_other_keys_and_disagreeing_keys(tmp_path):
    atoms = water(REF_energy=-1.0, ccsd=-3.0)
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    with pytest.raises(ValueError, match=r"frame 0 \(H2O\): .*energy.* and .*REF_energy.* differ"):
        read_files([tmp_path / "a.xyz"])
    assert read_files([tmp_path / "a.xyz"], {"energy": "ccsd"})[0].energy.tolist() == [-3.0]
    with pytest.raises(ValueError, match="labels has no 'dipole'"):
        read_files([tmp_path / "a.xyz"], {"dipole": "mu"})


def bad_frames():
    periodic, no_forces, broken = water(), water(), water(energy=np.nan)
    periodic.cell, periodic.pbc = [9, 9, 9], True
    del no_forces.arrays["forces"]
    return [
        (periodic, "frame 1 .* is periodic, which training does not support"),
        (
            no_forces,
            r"frame 1 \(H2O\) has no forces: looked for forces, REF_forces; .*"
            r"\[data.labels\] forces = NAME, or nnpcalc evaluate --label forces=NAME",
        ),
        (broken, "frame 1 .*energy.* is not finite"),
        (water(spin=2), "frame 1: H2O: multiplicity 2 .* is impossible"),
        (water(charge=0.5), "frame 1: H2O: .*must be an integer"),
        (water(split="sometimes"), "frame 1 .*split = 'sometimes'; known are train"),
    ]


@pytest.mark.parametrize(("atoms", "message"), bad_frames(), ids=lambda x: str(x)[-24:])
def test_a_bad_frame_is_named(tmp_path, atoms, message):
    write(tmp_path / "a.xyz", [water(), atoms], format="extxyz")
    with pytest.raises(ValueError, match=message):
        read_files([tmp_path / "a.xyz"])


def test_what_is_no_structure_file(tmp_path):
    (tmp_path / "a.xyz").write_text("this is no structure\n")
    with pytest.raises(ValueError, match=r"a\.xyz cannot be read"):
        read_files([tmp_path / "a.xyz"])
    with pytest.raises(ValueError, match=r"unknown suffix '\.csv'; known are \.npz"):
        read_files([tmp_path / "a.csv"])
    with pytest.raises(OSError, match=r"absent\.xyz"):
        read_files([tmp_path / "absent.xyz"])


# --- who validates -----------------------------------------------------------------------------


def test_molecules_are_drawn_whole_and_by_seed(tmp_path):
    frames = structures()
    for atoms in frames:
        del atoms.info["split"]
    write(tmp_path / "a.xyz", frames, format="extxyz")
    train, validation = read_dataset([tmp_path / "a.xyz"], validation_fraction=0.2, seed=3)
    assert len(validation) == 24 and len(train) == 96
    assert not set(train.molecule) & set(validation.molecule)
    again = read_dataset([tmp_path / "a.xyz"], validation_fraction=0.2, seed=3)[1]
    other = read_dataset([tmp_path / "a.xyz"], validation_fraction=0.2, seed=4)[1]
    assert np.array_equal(again.energy, validation.energy)
    assert not np.array_equal(other.energy, validation.energy)
    single = read_dataset([tmp_path / "a.xyz"], validation_fraction=0.2, split_by="conformer")
    assert set(single[0].molecule) & set(single[1].molecule)


def test_drawing():
    groups = np.array([0] * 90 + [1] * 6 + [2] * 4)
    for seed in range(5):  # the large molecule never fits
        assert draw(groups, 0.1, seed)[:90].sum() == 0
        assert draw(groups, 0.1, seed).sum() == 10
    assert draw(groups, 0.01, 0).sum() == 4  # at least one molecule: the smallest
    assert draw(groups, 0.0, 0).sum() == 0
    with pytest.raises(ValueError, match=r"of one molecule: .* set split_by = 'conformer'"):
        draw(np.zeros(9), 0.1, 0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        draw(groups, 1.0, 0)


def test_conformers_that_the_file_assigns_are_not_drawn(tmp_path):
    write(tmp_path / "a.xyz", [water(split="train"), water(split="val"), water(split="test")])
    train, validation = read_dataset([tmp_path / "a.xyz"], validation_fraction=0.5)
    assert (len(train), len(validation)) == (1, 1)


# --- HDF5 --------------------------------------------------------------------------------------


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def spice_group(file, name, numbers, **more):
    """Two conformers in the layout of SPICE; random values in atomic units."""
    rng = np.random.default_rng(len(numbers))
    n = len(numbers)
    group = file.create_group(name)
    values = {
        "atomic_numbers": np.array(numbers, np.int16),
        "conformations": rng.normal(size=(2, n, 3)).astype(np.float32),
        "dft_total_energy": rng.normal(size=2),
        "formation_energy": rng.normal(size=2),
        "dft_total_gradient": rng.normal(size=(2, n, 3)).astype(np.float32),
        "mbis_charges": rng.normal(size=(2, n, 1)).astype(np.float32),
        "subset": ["SPICE Test Set"],
        **more,
    }
    for key, value in values.items():
        group.create_dataset(key, data=value)
    group["conformations"].attrs["units"] = "bohr"
    group["dft_total_energy"].attrs["units"] = "hartree"
    group["dft_total_gradient"].attrs["units"] = "hartree/bohr"
    return values


def test_spice(h5py, tmp_path):
    with h5py.File(tmp_path / "spice.hdf5", "w") as file:
        first = spice_group(file, "a", [8, 1], charge=-1)
        second = spice_group(file, "b", [1, 6, 7], charge=0)
    dataset, split = read_files([tmp_path / "spice.hdf5"])
    assert dataset.n_atoms.tolist() == [2, 2, 3, 3] and (split == -1).all()
    assert dataset.numbers.tolist() == [8, 1, 8, 1, 1, 6, 7, 1, 6, 7]
    assert dataset.charge.tolist() == [-1, -1, 0, 0]
    assert dataset.multiplicity.tolist() == [1, 1, 1, 1]
    assert dataset.molecule.tolist() == [0, 0, 1, 1]
    assert set(dataset.source) == {"SPICE Test Set"}
    energy = np.concatenate([first["dft_total_energy"], second["dft_total_energy"]])
    np.testing.assert_allclose(dataset.energy, energy * units.Hartree, rtol=1e-14)
    positions = second["conformations"].reshape(-1, 3) * units.Bohr
    np.testing.assert_allclose(dataset.positions[4:], positions, rtol=1e-6)
    forces = -second["dft_total_gradient"].reshape(-1, 3) * units.Hartree / units.Bohr
    np.testing.assert_allclose(dataset.forces[4:], forces, rtol=1e-6)
    np.testing.assert_allclose(dataset.partial_charges[:4], first["mbis_charges"].ravel())
    formation = read_files([tmp_path / "spice.hdf5"], {"energy": "formation_energy"})[0].energy
    np.testing.assert_allclose(formation[:2], first["formation_energy"] * units.Hartree)


def test_charge_of_the_smiles(h5py, tmp_path):
    pytest.importorskip("rdkit")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        spice_group(file, "zwitterion and calcium", [20], smiles=["[Ca+2:1].C[N+](C)(C)CC(=O)[O-]"])
        spice_group(file, "hydroxide", [8, 1], smiles=["[O-:1][H:2]"])
    assert read_files([tmp_path / "a.h5"])[0].charge.tolist() == [-1, -1, 2, 2]


def test_without_rdkit_the_remedy_is_said(h5py, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        spice_group(file, "hydroxide", [8, 1], smiles=["[O-:1][H:2]"])
    with pytest.raises(ImportError, match=r"group hydroxide .* needs RDKit: pip install rdkit"):
        read_files([tmp_path / "a.h5"])


def test_without_h5py_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs h5py: pip install 'nnpcalc\[train\]'"):
        read_files([tmp_path / "a.h5"])


MODELFORGE = {
    "positions": "nanometer",
    "energies": "kilojoule_per_mole",
    "forces": "kilojoule_per_mole / nanometer",
    "total_charge": "elementary_charge",
    "partial_charges": "elementary_charge",
    "spin_multiplicities_per_system": "dimensionless",
}


def modelforge_group(file, name, numbers, **more):
    """Two conformers, as the curation of ModelForge writes them."""
    rng = np.random.default_rng(7)
    n = len(numbers)
    group = file.create_group(name)
    values = {
        "atomic_numbers": np.array(numbers).reshape(-1, 1),
        "n_configs": 2,
        "positions": rng.normal(size=(2, n, 3)),
        "energies": rng.normal(size=(2, 1)),
        "forces": rng.normal(size=(2, n, 3)),
        "total_charge": np.array([[-1], [0]]),
        "partial_charges": rng.normal(size=(2, n, 1)),
        "spin_multiplicities_per_system": np.array([[1], [2]]),
        **more,
    }
    for key, value in values.items():
        group.create_dataset(key, data=value)
        if key in MODELFORGE:
            group[key].attrs["u"] = MODELFORGE[key]
    return values


def test_modelforge(h5py, tmp_path):
    with h5py.File(tmp_path / "mf.hdf5", "w") as file:
        values = modelforge_group(file, "hydroxyl", [8, 1])
    dataset, _ = read_files([tmp_path / "mf.hdf5"])
    np.testing.assert_allclose(dataset.positions, 10.0 * values["positions"].reshape(-1, 3), 1e-6)
    factor = units.kJ / units.mol
    np.testing.assert_allclose(dataset.energy, values["energies"].ravel() * factor)
    forces = values["forces"].reshape(-1, 3) * factor / units.nm
    np.testing.assert_allclose(dataset.forces, forces, rtol=1e-6)
    assert dataset.charge.tolist() == [-1, 0] and dataset.multiplicity.tolist() == [1, 2]
    np.testing.assert_allclose(dataset.partial_charges, values["partial_charges"].ravel(), 1e-6)
    assert set(dataset.source) == {"mf"}


def test_modelforge_grouped_by_size(h5py, tmp_path):
    with h5py.File(tmp_path / "mf.hdf5", "w") as file:
        group = {
            "atomic_numbers": np.array([[[8], [1]], [[6], [1]]]),
            "grouped_indices": [1, 0],
            "grouped_names": ["hydroxyl", "carbyne"],
        }
        modelforge_group(file, "group_2", [8, 1], **group)
    dataset, _ = read_files([tmp_path / "mf.hdf5"])
    assert dataset.numbers.tolist() == [6, 1, 8, 1]
    assert np.unique(dataset.molecule).size == 2


def test_bad_hdf5_groups_are_named(h5py, tmp_path):
    def refused(message, change):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            modelforge_group(file, "hydroxyl", [8, 1])
            change(file["hydroxyl"])
        with pytest.raises(ValueError, match=message):
            read_files([tmp_path / "a.h5"])

    def set_unit(name, unit):
        def change(group):
            group[name].attrs["u"] = unit

        return change

    def nan(group):
        group["forces"][1, 0, 0] = np.nan

    refused("positions is in 'furlong', a unit", set_unit("positions", "furlong"))
    refused("forces is in 'hartree', a unit", set_unit("forces", "hartree"))
    refused("total_charge is in 'coulomb', a unit", set_unit("total_charge", "coulomb"))
    refused("has no attribute 'u'", lambda group: group["energies"].attrs.pop("u"))
    refused("group hydroxyl, conformer 1: forces is not finite", nan)
    refused(r"none of the datasets dft_total_energy.*\[data.labels\] energy = NAME, or .*--label",
            lambda group: group.move("energies", "mp2_energy"))  # fmt: skip
    refused("multiplicity 2 .* is impossible", lambda group: group["total_charge"].write_direct(
        np.array([[-1], [-1]])))  # fmt: skip
    refused("neither a group of SPICE .* nor of ModelForge",
            lambda group: group.move("positions", "coordinates"))  # fmt: skip


def test_groups_with_different_labels_are_refused(h5py, tmp_path):
    """Total and formation energies in one file would be a silent disaster."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        spice_group(file, "a", [8, 1], charge=-1)
        spice_group(file, "b", [8, 1], charge=-1)
        del file["b"]["dft_total_energy"]
    with pytest.raises(ValueError, match="group b lacks the dataset 'dft_total_energy'"):
        read_files([tmp_path / "a.h5"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hartree / bohr", units.Hartree / units.Bohr),
        ("kilojoule_per_mole / nanometer", units.kJ / units.mol / units.nm),
        ("kilojoule / mole / nanometer", units.kJ / units.mol / units.nm),
        ("kilojoule / nanometer / mole", units.kJ / units.mol / units.nm),
        ("kcal/mol/angstrom", units.kcal / units.mol),
        ("eV/Å", 1.0),
        ("hartree", None),
        ("hartree/hartree", None),
    ],
)
def test_units_of_forces(text, expected):
    assert force_unit(text) == (expected if expected is None else pytest.approx(expected))
