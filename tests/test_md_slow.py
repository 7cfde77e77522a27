"""Minutes: many kills at random moments, the cost of the loop, long constant-energy dynamics."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

from md_fields import LennardJones, cluster
from nnpcalc import md
from nnpcalc.md.forcefield import ModelForceField
from nnpcalc.weights import list_models

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent

#: Arguments: directory, suffix, number of kills. Prints a line about each kill. The child says
#: through a pipe which frames it has written; whatever it said must be in the file.
KILLER = """
import os, random, signal, struct, sys, time
from pathlib import Path
import torch
sys.path.insert(0, "tests")
import test_md_slow as tests
from nnpcalc import md

torch.set_num_threads(1)
directory, suffix, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
random.seed(suffix)
tests.simulate(Path(sys.argv[1]) / "warm", suffix, 5)
done = 0
while done < kills:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        def tell(frame):
            os.write(writer, struct.pack("<q", frame.state.step))
        tests.simulate(directory, suffix, 100_000, report=tell)
        os._exit(0)
    os.close(writer)
    first = os.read(reader, 8)  # the run is under way
    time.sleep(random.uniform(0.0, 0.25))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    told = first + os.read(reader, 1 << 20)
    os.close(reader)
    last = struct.unpack("<q", told[-8:])[0]
    saved = md.Checkpoint.load(directory / "run.ckpt").state.step
    steps = [a.info["step"] for a in md.read_trajectory(directory / f"run{suffix}", replica=0)]
    assert steps == list(range(len(steps)))  # none is missing, none is there twice
    done += 1
    print(saved, steps[-1], last)
"""


def simulate(directory: Path, suffix: str, steps: int, **more: object) -> md.Run:
    """A run that does little else than writing."""
    directory.mkdir(exist_ok=True)
    return md.run(
        [cluster(3), cluster(4)], LennardJones(), md.Langevin(4.0, 40.0), steps, seed=9,
        trajectory=directory / f"run{suffix}", interval=1, checkpoint=directory / "run.ckpt",
        checkpoint_interval=7, resume=True, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(("suffix", "kills"), [(".xyz", 50), (".traj", 50), (".h5", 50)])
def test_kills_at_random_moments(suffix: str, kills: int, tmp_path: Path) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    command = [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path / "run"), suffix]
    (tmp_path / "run").mkdir()
    done = subprocess.run([*command, str(kills)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == kills
    for saved, in_file, told in lines:
        assert in_file >= told  # nothing that was finished is lost
        assert saved <= in_file + 1 and told - saved <= 7
    assert all(after[0] >= before[0] for before, after in itertools.pairwise(lines))
    # what all these runs have made together is what one run makes
    last = lines[-1][0] + 10
    parts = simulate(tmp_path / "run", suffix, last)
    whole = simulate(tmp_path / "whole", suffix, last)
    assert torch.equal(parts.state.positions, whole.state.positions)
    first, second = (
        [a.positions for a in md.read_trajectory(tmp_path / name / f"run{suffix}", replica=1)]
        for name in ("run", "whole")
    )
    assert len(first) == last + 1 and np.array_equal(first, second)


class Timed(ModelForceField):
    """Adds up the processor time of the neighbor list and the model."""

    seconds = 0.0

    def _run(self, *arguments: Any) -> dict[str, torch.Tensor]:
        start = time.thread_time()
        output = super()._run(*arguments)
        self.seconds += time.thread_time() - start
        return output


def test_the_loop_costs_little() -> None:
    """At most 5 % of processor time beside the model and its neighbor list, at 21 atoms."""
    pytest.importorskip("numba")
    if "tensornet-spice" not in list_models():
        pytest.skip("the shipped model is not there")
    atoms, ethanol = molecule("C6H6"), molecule("CH3CH2OH")
    ethanol.translate([0.0, 0.0, 4.5])
    atoms += ethanol
    timed = Timed("tensornet-spice")

    def seconds(field: ModelForceField, clock: Callable[[], float]) -> float:
        """Of 100 steps, the median."""
        seen: list[float] = []

        def look(_: md.Frame) -> None:
            seen.append(clock())

        md.run(atoms, field, md.Langevin(0.5, 300.0), 2000, seed=1, interval=100, report=look)
        return float(np.median(np.diff(seen)))

    # the model is timed in single steps, which the loop need not take
    model = seconds(timed, lambda: timed.seconds)
    everything = seconds(ModelForceField("tensornet-spice"), time.thread_time)
    share = everything / model - 1.0
    print(f"{10 * everything:.3f} ms per step, {share:.1%} of it beside the model")
    assert share < 0.05


def test_energy_of_a_trained_model_is_conserved() -> None:
    """5 ps of ethanol at 300 K in float64: drift below 0.01 meV per atom and ps."""
    if "tensornet-spice" not in list_models():
        pytest.skip("the shipped model is not there")
    field, integrator = ModelForceField("tensornet-spice", dtype="float64"), md.NVE(0.5)
    relaxed = md.run(molecule("CH3CH2OH"), field, md.Langevin(0.5, 300.0, 0.02), 1000, seed=3).state
    energies: list[float] = []
    md.run(
        md.without_drift(replace(relaxed, step=0)), field, integrator, 10_000,
        interval=10, report=lambda frame: energies.append(float(frame.conserved[0])),
    )  # fmt: skip
    slope = np.polyfit(np.arange(len(energies)) * 0.005, energies, 1)[0] / 9 * 1000
    print(f"drift {slope:.2e} meV per atom and ps, fluctuation {np.std(energies) * 1000:.3f} meV")
    assert abs(slope) < 0.01
