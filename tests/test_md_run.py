"""`md.run`: from structures to files, and on after whatever stopped it."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength

from md_fields import Harmonic, LennardJones, argon, assert_same_bits, cluster
from nnpcalc import md
from nnpcalc.md.checkpoint import CheckpointError
from tiny_model import make_calculator

ROOT = Path(__file__).resolve().parent.parent
KELVIN = 40.0

INTEGRATORS = {
    "NVE": lambda: md.NVE(4.0),
    "Langevin": lambda: md.Langevin(4.0, KELVIN, friction=0.005),
    "Bussi": lambda: md.Bussi(4.0, KELVIN),
    "NoseHoover": lambda: md.NoseHoover(4.0, KELVIN),
    "Respa": lambda: md.Respa(md.Langevin(2.0, KELVIN), LennardJones(0.009), 2),
    "CellRescaling": lambda: md.CellRescaling(4.0, KELVIN, 0.1, interval=3),
    "anisotropic": lambda: md.CellRescaling(4.0, KELVIN, 0.1, anisotropic=True, interval=3),
}


def simulate(
    name: str, directory: Path, steps: int, *, resume: bool = False, **more: Any
) -> md.Run:
    """Two replicas with every file; what the tests below compare."""
    crystal = name in ("CellRescaling", "anisotropic")
    atoms = [argon(), argon(a=5.35)] if crystal else [cluster(), cluster(5)]
    options: dict[str, Any] = {
        "temperature": KELVIN, "seed": 5, "trajectory": directory / "run.xyz", "interval": 10,
        "checkpoint": directory / "run.ckpt", "checkpoint_interval": 25, "resume": resume,
    }  # fmt: skip
    return md.run(atoms, LennardJones(), INTEGRATORS[name](), steps, **{**options, **more})


class Killed(Exception):
    pass


KILLS = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, "tests")
import test_md_run as tests

torch.set_num_threads(1)

def die(frame):
    if frame.state.step == 60:
        os.kill(os.getpid(), signal.SIGKILL)

for name in tests.INTEGRATORS:
    child = os.fork()
    if not child:
        tests.simulate(name, Path(sys.argv[1]) / name, 100, report=die)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

for number in (signal.SIGTERM, signal.SIGINT):
    child = os.fork()
    if not child:
        def interrupt(frame):
            os.kill(os.getpid(), number)
        tests.simulate("NVE", Path(sys.argv[1]) / number.name, 100, report=interrupt)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each integrator, in a process of its own, that SIGKILL ended after step 60.

    And two that SIGTERM and SIGINT end, with the status that a shell expects.
    """
    directory = tmp_path_factory.mktemp("killed")
    for name in (*INTEGRATORS, "SIGTERM", "SIGINT"):
        (directory / name).mkdir()
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    expected = [str(-signal.SIGKILL)] * len(INTEGRATORS) + ["143", "130"]
    assert done.stdout.split() == expected, done.stderr
    for name in ("SIGTERM", "SIGINT"):
        assert md.Checkpoint.load(directory / name / "run.ckpt").marks  # with the first frame
    return directory


@pytest.mark.parametrize("name", INTEGRATORS)
def test_restart_is_bit_for_bit(name: str, killed: Path, tmp_path: Path) -> None:
    """100 steps = 60 steps, `kill -9`, and 40 more: the state and every byte of the files."""
    frames = list(md.read_trajectory(killed / name / "run.xyz", replica=1))
    assert [atoms.info["step"] for atoms in frames] == [0, 10, 20, 30, 40, 50, 60]
    parts = simulate(name, killed / name, 100, resume=True)
    whole = simulate(name, tmp_path, 100)
    assert_same_bits(whole.state, parts.state)
    for file in ("run.xyz", "run.ckpt"):
        assert (tmp_path / file).read_bytes() == (killed / name / file).read_bytes()


@pytest.mark.parametrize("suffix", [".xyz", ".traj", ".h5"])
def test_stopped_and_extended(suffix: str, tmp_path: Path) -> None:
    """Stopped between checkpoints, then extended: the trajectory is that of one long run."""
    if suffix == ".h5":
        pytest.importorskip("h5py")
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    simulate("Langevin", tmp_path, 90, trajectory=whole, checkpoint=None)

    def stop(frame: md.Frame) -> None:
        if frame.state.step == 40:
            raise Killed

    with pytest.raises(Killed):
        simulate("Langevin", tmp_path, 60, trajectory=parts, report=stop)
    assert len(list(md.read_trajectory(parts))) == 10  # 0 .. 40, two replicas
    simulate("Langevin", tmp_path, 60, trajectory=parts, resume=True)
    simulate("Langevin", tmp_path, 90, trajectory=parts, resume=True)
    simulate("Langevin", tmp_path, 90, trajectory=parts, resume=True)  # there is nothing left to do
    first, second = list(md.read_trajectory(whole)), list(md.read_trajectory(parts))
    assert len(first) == len(second) == 20
    for a, b in zip(first, second, strict=True):
        assert a.info == b.info
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.get_momenta(), b.get_momenta())
        assert np.array_equal(a.get_forces(), b.get_forces())


def test_stopped_before_the_first_frame_was_safe(tmp_path: Path) -> None:
    def stop(frame: md.Frame) -> None:
        raise Killed

    with pytest.raises(Killed):
        simulate("Langevin", tmp_path, 30, report=stop)
    resumed = simulate("Langevin", tmp_path, 30, resume=True)
    assert len(list(md.read_trajectory(tmp_path / "run.xyz"))) == 8
    (tmp_path / "again").mkdir()
    assert_same_bits(resumed.state, simulate("Langevin", tmp_path / "again", 30).state)


def test_the_common_job(tmp_path: Path) -> None:
    """A network, a molecule, one line; nothing of the caller's is changed."""
    atoms = molecule("H2O")
    atoms.info["charge"] = 1
    before = atoms.copy()
    result = md.run(
        atoms, make_calculator(), md.Langevin(0.5, temperature=300), 20,
        trajectory=tmp_path / "run.xyz", interval=10, seed=2,
        # The weights are random: the forces are steeper than the time step is short.
        watchdog=md.Watchdog(max_temperature=None, max_energy_jump=None),
    )  # fmt: skip
    assert atoms == before and atoms.info == before.info and atoms.calc is None
    (last,) = result.atoms
    frames = list(md.read_trajectory(tmp_path / "run.xyz"))
    assert [frame.info["time"] for frame in frames] == [0.0, 5.0, 10.0]
    assert (last.info["charge"], last.info["spin"]) == (1, 2)
    assert np.allclose(frames[-1].positions, last.positions, atol=1e-9)
    assert np.allclose(frames[-1].get_momenta(), last.get_momenta(), atol=1e-9)
    calc = make_calculator()
    last.calc = calc
    assert np.allclose(frames[-1].get_forces(), last.get_forces(), atol=1e-5)
    assert frames[-1].get_potential_energy() == pytest.approx(last.get_potential_energy())
    drawn = [md.run(atoms, calc, md.Langevin(0.5, 300), 0).seed for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_momenta_are_taken_or_drawn() -> None:
    field, atoms = LennardJones(), cluster()
    with pytest.raises(ValueError, match="have no momenta: give temperature="):
        md.run(atoms, field, md.NVE(1.0), 0)
    assert not md.run(atoms, field, md.NVE(1.0), 0, temperature=0.0).state.momenta.any()
    drawn = md.run(atoms, field, md.Bussi(1.0, 80.0), 0, seed=3)
    again = md.run(atoms, field, md.NVE(1.0), 0, temperature=80.0, seed=3)
    assert torch.equal(drawn.state.momenta, again.state.momenta)
    (moving,) = again.atoms
    taken = md.run(moving, field, md.NVE(1.0), 0)
    assert torch.allclose(taken.state.momenta, again.state.momenta, rtol=1e-15)
    assert moving.get_temperature() * 7 / 6 == pytest.approx(float(md.temperature(taken.state)))


def test_fixed_atoms_stay() -> None:
    atoms = cluster()
    atoms.set_constraint(FixAtoms([1, 4]))
    for integrator in (md.Langevin(4.0, 300.0, 0.02), md.Bussi(4.0, 300.0), md.NVE(4.0)):
        result = md.run(
            [atoms, cluster()], LennardJones(), integrator, 30, temperature=300.0, seed=1
        )
        state = result.state
        assert state.degrees[0] == 15
        moved = np.abs(result.atoms[0].positions - atoms.positions).max(1)
        assert (moved[[1, 4]] == 0).all() and (np.delete(moved, [1, 4]) > 0).all()
        assert not state.momenta[[1, 4]].any() and not state.forces[[1, 4]].any()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match=r"FixBondLengths?; only FixAtoms"):
        md.run(atoms, LennardJones(), md.NVE(1.0), 1, temperature=10.0)


def test_heavier_hydrogen() -> None:
    atoms = [molecule("CH3OH"), molecule("H2")]
    state = md.run(atoms, Harmonic(), md.NVE(1.0), 0, temperature=0.0, hydrogen_mass=3.0).state
    plain = np.concatenate([a.get_masses() for a in atoms])
    masses = state.masses.numpy()
    light = np.concatenate([a.numbers for a in atoms]) == 1
    assert masses.sum() == pytest.approx(plain.sum())
    assert masses[light] == pytest.approx([3.0] * 4 + [1.008] * 2)
    assert np.array_equal(state.inverse_masses[:, 0].numpy(), 1 / masses)
    with pytest.raises(ValueError, match=r"atom 0 \(C\) would be left with .* amu"):
        md.run(molecule("CH4"), Harmonic(), md.NVE(1.0), 0, temperature=0.0, hydrogen_mass=4.0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(number: int, status: int, tmp_path: Path) -> None:
    """The run ends between two steps, with a checkpoint, and goes on to the same end."""

    def interrupt(frame: md.Frame) -> None:
        if frame.state.step == 30:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(md.Interrupted, match="after step") as caught:
        simulate("Langevin", tmp_path, 70, report=interrupt)
    assert caught.value.code == status and isinstance(caught.value, SystemExit)
    assert signal.getsignal(number) is before
    saved = md.Checkpoint.load(tmp_path / "run.ckpt")
    assert saved.state.step == caught.value.step >= 30
    resumed = simulate("Langevin", tmp_path, 70, resume=True)
    (tmp_path / "whole").mkdir()
    assert_same_bits(resumed.state, simulate("Langevin", tmp_path / "whole", 70).state)


def test_outside_of_the_main_thread(tmp_path: Path) -> None:
    found: list[md.Run] = []
    thread = threading.Thread(target=lambda: found.append(simulate("NVE", tmp_path, 10)))
    thread.start()
    thread.join()
    assert found[0].state.step == 10


@pytest.mark.parametrize("suffix", [".xyz", ".traj", ".h5"])
def test_full_disk(suffix: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the error names the file, the rest is intact."""
    if suffix == ".h5":
        pytest.importorskip("h5py")
    trajectory = tmp_path / f"run{suffix}"
    simulate("Langevin", tmp_path, 40, trajectory=trajectory)
    count = len(list(md.read_trajectory(trajectory)))
    saved = (tmp_path / "run.ckpt").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = trajectory.stat().st_size + 300
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=trajectory.name) as caught:
            simulate("Langevin", tmp_path, 400, trajectory=trajectory, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "run.ckpt").read_bytes() == saved
    assert len(list(md.read_trajectory(trajectory))) == count
    simulate("Langevin", tmp_path, 60, trajectory=trajectory, resume=True)
    assert len(list(md.read_trajectory(trajectory))) == count + 4


def test_no_room_for_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate("NVE", tmp_path, 10)
    saved = (tmp_path / "run.ckpt").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run\.(xyz|ckpt)"):
        simulate("NVE", tmp_path, 40, resume=True)
    monkeypatch.undo()
    assert (tmp_path / "run.ckpt").read_bytes() == saved
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    simulate("NVE", tmp_path, 0)
    with pytest.raises(FileExistsError, match=r"resume=True.*run.ckpt"):
        simulate("NVE", tmp_path, 10)
    (tmp_path / "run.ckpt").unlink()
    with pytest.raises(FileExistsError, match=r"run.xyz"):
        simulate("NVE", tmp_path, 10, resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 6}, "of a run with seed 5, not 6"),
        ({"temperature": 50.0}, "with temperature 40.0, not 50.0"),
        ({"replicas": [3, 4]}, r"with replicas None, not \[3, 4\]"),
        ({"watchdog": md.Watchdog(max_force=9.0)}, "with watchdog max_force 300.0, not 9.0"),
        ({"interval": 20}, "with interval 10, not 20"),
        ({"trajectory": "other.xyz"}, "with trajectory 'run.xyz', not 'other.xyz'"),
        ({"hydrogen_mass": 2.0}, "with hydrogen_mass None, not 2.0"),
    ],
)
def test_a_checkpoint_of_another_run(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    simulate("NVE", tmp_path, 20)
    with pytest.raises(CheckpointError, match=text):
        simulate("NVE", tmp_path, 30, resume=True, **change)
    with pytest.raises(CheckpointError, match="with integrator 'NVE', not 'Langevin'"):
        simulate("Langevin", tmp_path, 30, resume=True)
    with pytest.raises(ValueError, match="20 steps already, more than 10"):
        simulate("NVE", tmp_path, 10, resume=True)


def charged(atoms: Atoms, **info: int) -> Atoms:
    atoms.info.update(info)
    return atoms


def holding(atoms: Atoms) -> Atoms:
    atoms.set_constraint(FixAtoms([2]))
    return atoms


@pytest.mark.parametrize(
    ("atoms", "text"),
    [
        ([cluster()], "of the replicas 0, 1, not 0: give the structures it had"),
        ([cluster(5), cluster()], "replica 0 of the checkpoint has the elements Ar7, not Ar5"),
        ([cluster(), charged(cluster(5), charge=2)], "replica 1 .* has charge 0, not 2"),
        ([charged(cluster(), spin=3), cluster(5)], "replica 0 .* has multiplicity 1, not 3"),
        ([cluster(), holding(cluster(5))], r"replica 1 .* has fixed atoms \[\], not \[2\]"),
        ([cluster(), argon()], "replica 1 .* has the elements Ar5, not Ar32"),
    ],
)
def test_a_checkpoint_of_other_molecules(atoms: list[Atoms], text: str, tmp_path: Path) -> None:
    simulate("NVE", tmp_path, 10)
    before = [cluster(), cluster(5)]
    options: dict[str, Any] = {
        "temperature": KELVIN, "seed": 5, "trajectory": tmp_path / "run.xyz", "interval": 10,
        "checkpoint": tmp_path / "run.ckpt", "resume": True,
    }  # fmt: skip
    assert md.run(before, LennardJones(), INTEGRATORS["NVE"](), 12, **options).state.step == 12
    with pytest.raises(CheckpointError, match=text):
        md.run(atoms, LennardJones(), INTEGRATORS["NVE"](), 14, **options)


def test_a_damaged_checkpoint_is_noticed(tmp_path: Path) -> None:
    simulate("NVE", tmp_path, 0)
    path = tmp_path / "run.ckpt"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 1
    for bad in (content[:-1], content[:100], b"", b"nonsense" * 100, bytes(flipped)):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"no checkpoint, or damaged|is damaged"):
            simulate("NVE", tmp_path, 10, resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": -1}, "steps must be"),
        ({"interval": 0}, "interval must be"),
        ({"checkpoint_interval": 1.5}, "checkpoint_interval must be"),
        ({"resume": True}, "give the file"),
        ({"trajectory": "run.dcd"}, "trajectories end in .xyz"),
        ({"replicas": [1, 1]}, "2 replicas need as many different identities"),
        ({"replicas": [1]}, "must be 2 identities"),
        ({"atoms": []}, "there is nothing to simulate"),
        ({"atoms": [Atoms()]}, "every replica needs at least one atom"),
        ({"temperature": -5.0}, "finite and not negative"),
        ({"temperature": "warm"}, "temperatures must be numbers"),
        ({"integrator": md.NVE}, "is no integrator: give for example"),
        ({"integrator": "NVE"}, "'NVE' is no integrator"),
        ({"trajectory": "run.xyz", "checkpoint": "run.xyz"}, "are the same file"),
        ({"atoms": [Atoms("Ar", momenta=[[0, math.nan, 0]])]}, "atom 0 has the momentum"),
    ],
)
def test_bad_arguments(change: dict[str, Any], text: str) -> None:
    options: dict[str, Any] = {
        "atoms": [cluster(), cluster()], "steps": 5, "temperature": 10.0, **change
    }  # fmt: skip
    atoms, steps = options.pop("atoms"), options.pop("steps")
    integrator = options.pop("integrator", md.NVE(1.0))
    with pytest.raises(ValueError, match=text):
        md.run(atoms, LennardJones(), integrator, steps, **options)


def test_numbers_of_numpy() -> None:
    result = md.run(cluster(), LennardJones(), md.NVE(1.0), np.int64(3), temperature=1.0)  # type: ignore[arg-type]
    assert result.state.step == 3
