"""Trajectory files: what is written comes back, and a torn end costs no more than itself."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from md_fields import LennardJones, argon, cluster
from nnpcalc import md


def write(path: Path, atoms: list[Atoms] | None = None, steps: int = 40) -> md.Run:
    return md.run(
        [cluster(4), cluster(6)] if atoms is None else atoms, LennardJones(),
        md.Langevin(4.0, 40.0), steps, seed=2, trajectory=path, interval=10,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".traj", ".h5"])
def test_contents(suffix: str, tmp_path: Path) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    path = tmp_path / f"run{suffix}"
    mixed = [cluster(4), bulk("Ar", "fcc", a=5.3) * (2, 1, 1)]
    result = write(path, mixed)
    frames = list(md.read_trajectory(path))
    assert [(a.info["step"], a.info["replica"]) for a in frames] == [
        (s, r) for s in range(0, 41, 10) for r in (0, 1)
    ]
    tolerance = 1e-6 if suffix == ".h5" else 1e-9
    for a, b in zip(frames[-2:], result.atoms, strict=True):
        assert np.array_equal(a.numbers, b.numbers) and (a.pbc == b.pbc).all()
        assert np.allclose(a.cell, b.cell, atol=1e-9)
        assert np.allclose(a.positions, b.positions, atol=tolerance)
        assert np.allclose(a.get_momenta(), b.get_momenta(), atol=tolerance)
        assert np.allclose(a.get_forces(), b.get_forces(), atol=tolerance)
        assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=1e-9)
        assert a.info["time"] == 160.0 and a.info["charge"] == 0 and a.info["spin"] == 1
    own = [atoms.info["step"] for atoms in md.read_trajectory(path, replica=1)]
    assert own == [0, 10, 20, 30, 40]
    conserved = [atoms.info["conserved_energy"] for atoms in md.read_trajectory(path, replica=0)]
    assert np.ptp(conserved) < 1e-3
    if suffix != ".h5":
        assert len(ase.io.read(path, ":")) == 10


@pytest.mark.parametrize("suffix", [".xyz", ".traj"])
def test_torn_at_every_byte_of_the_last_frame(suffix: str, tmp_path: Path) -> None:
    path, torn = tmp_path / f"run{suffix}", tmp_path / f"torn{suffix}"
    sizes = []
    for steps in (20, 30):
        path.unlink(missing_ok=True)
        write(path, [cluster(3)], steps)
        sizes.append(path.stat().st_size)
    content = path.read_bytes()
    whole = [atoms.positions for atoms in md.read_trajectory(path)]
    assert len(whole) == 4
    for size in range(sizes[0] + (1 if suffix == ".xyz" else 0), sizes[1]):
        torn.write_bytes(content[:size])
        if suffix == ".xyz":  # read as it is; ASE reads it once it is repaired
            assert len(list(md.read_trajectory(torn))) == 3
        assert md.repair(torn) > 0 or size == sizes[0]
        if size % 7 and size < sizes[1] - 3:  # ASE takes its time
            continue
        found = ase.io.read(torn, ":")
        assert len(found) == 3
        assert all(
            np.array_equal(a.positions, b) for a, b in zip(found, whole[:3], strict=True)
        ) or (suffix == ".xyz")
    torn.write_bytes(content)
    assert md.repair(torn) == 0 and torn.read_bytes() == content


def test_garbage_behind_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run.xyz"
    write(path)
    content = path.read_bytes()
    for junk in (b"\0" * 5000, b"7\nProperties=", b"not a number\n"):
        path.write_bytes(content + junk)
        assert len(list(md.read_trajectory(path))) == 10
        assert md.repair(path) == len(junk) and path.read_bytes() == content


def test_what_is_no_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "run.traj"
    path.write_bytes(b"something else" * 10)
    with pytest.raises(ValueError, match="no ASE trajectory"):
        md.repair(path)
    path.write_bytes(b"")
    assert md.repair(path) == 0 and list(md.read_trajectory(path)) == []
    with pytest.raises(ValueError, match=r"trajectories end in .xyz"):
        list(md.read_trajectory(tmp_path / "run.pdb"))


def test_hdf5_is_valid_at_every_moment(tmp_path: Path) -> None:
    """Any program may open it while it grows; frames that are not there yet do not count."""
    h5py = pytest.importorskip("h5py")
    path, seen = tmp_path / "run.h5", []

    def look(frame: md.Frame) -> None:
        with h5py.File(path, "r") as file:
            seen.append(int((file["step"][:] >= 0).sum()))
            assert file["positions"].shape == (5, 10, 3) and file.attrs["format"]

    md.run(
        [cluster(4), cluster(6)], LennardJones(), md.NVE(4.0), 40, temperature=40.0, seed=3,
        trajectory=path, interval=10, report=look,
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5]


def test_hdf5_is_compact(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    for suffix in (".h5", ".xyz"):
        write(tmp_path / f"run{suffix}", [argon()] * 8)
    assert (tmp_path / "run.h5").stat().st_size < 0.35 * (tmp_path / "run.xyz").stat().st_size
