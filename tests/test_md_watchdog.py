"""The watchdog: a bad replica is stopped and named, the others do not notice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from md_fields import Harmonic, LennardJones, assert_same_bits, cluster
from nnpcalc import AtomsBatch, md

QUIET = {"temperature": 20.0, "seed": 4}


class Sabotage(LennardJones):
    """From a step on, something is wrong with the system of `size` atoms."""

    def __init__(self, what: str, size: int = 5, calls: int = 12) -> None:
        super().__init__()
        self.what, self.size, self.calls, self.n = what, size, calls, 0

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        found = super().__call__(atoms, stress=stress)
        self.n += 1
        (rows,) = torch.nonzero(atoms.counts == self.size, as_tuple=True)
        if self.n <= self.calls or not len(rows):
            return found
        b = int(rows[0])
        first = int(atoms.counts[:b].sum())
        forces, energy = found.forces.clone(), found.energy.clone()
        if self.what == "nan":
            forces[first + 2, 1] = math.nan
        elif self.what == "energy":
            energy[b] = math.inf
        elif self.what == "force":
            forces[first + 3] = 1e4
        elif self.what == "jump":
            energy[b] += 3.0
        elif self.what == "error":
            raise ValueError("two atoms are in the same place")
        return md.Forces(energy, forces, uncertainty=torch.where(atoms.counts == 5, 9.0, 0.1))


@pytest.mark.parametrize(
    ("what", "reason", "atoms", "limits"),
    [
        ("nan", r"the force on atom 2 \(Ar\) is nan", (2,), {}),
        ("energy", "the energy is inf", (), {}),
        ("force", r"the force on atom 3 \(Ar\) is 1e\+04 eV/Å, beyond 300", (3,), {}),
        ("jump", "conserved energy changed by 0.6 eV per atom", (), {}),
        ("error", "two atoms are in the same place", (), {}),
        ("spread", "uncertain by 9 eV/Å, beyond 1", (), {"max_uncertainty": 1.0}),
    ],
)
def test_one_replica_is_stopped(
    what: str, reason: str, atoms: tuple[int, ...], limits: Any, tmp_path: Path
) -> None:
    structures = [cluster(4), cluster(5), cluster(6)]
    integrator, path = md.Langevin(4.0, 20.0), tmp_path / "run.xyz"
    with pytest.warns(md.MDWarning, match=reason):
        result = md.run(
            structures, Sabotage(what), integrator, 60, trajectory=path, interval=5,
            watchdog=md.Watchdog(interval=5, **limits), **QUIET,
        )  # fmt: skip
    (incident,) = result.incidents
    assert incident.replica == 1 and incident.atoms == atoms
    assert incident.step == (15 if what in ("energy", "jump", "spread") else 12)
    # the others as if it had not been there
    others = md.run(
        [structures[0], structures[2]], LennardJones(), integrator, 60, replicas=[0, 2], **QUIET
    )
    for name in ("positions", "momenta", "forces"):
        assert torch.equal(getattr(result.state, name), getattr(others.state, name))
    # its last good frames are kept, and they are good
    steps = [frame.info["step"] for frame in md.read_trajectory(path, replica=1)]
    assert steps == [0, 5, 10]
    (frozen,) = result.frozen
    assert frozen.step == 10 and torch.isfinite(frozen.positions).all()
    assert [a.info["replica"] for a in result.atoms] == [0, 1, 2]
    assert np.isfinite(result.atoms[1].positions).all()


def test_stopped_replicas_survive_a_restart(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **QUIET, "watchdog": md.Watchdog(interval=5), "interval": 10, "checkpoint_interval": 10,
    }  # fmt: skip
    structures = [cluster(4), cluster(5), cluster(6)]
    results = []
    for name, steps in (("whole", (60,)), ("parts", (30, 60))):
        files = {"trajectory": tmp_path / f"{name}.h5", "checkpoint": tmp_path / f"{name}.ckpt"}
        if name == "whole":
            pytest.importorskip("h5py")
        for k, n in enumerate(steps):
            field = Sabotage("nan") if k == 0 else LennardJones()
            field.description = "the same"  # type: ignore[attr-defined]
            integrator = md.Langevin(4.0, 20.0)
            if k == 0:
                with pytest.warns(md.MDWarning):
                    result = md.run(structures, field, integrator, n, **files, **options)
            else:
                result = md.run(structures, field, integrator, n, resume=True, **files, **options)
        results.append(result)
    whole, parts = results
    assert whole.incidents == parts.incidents
    assert_same_bits(whole.frozen[0], parts.frozen[0])
    for k in range(3):
        first, second = (
            [a.positions for a in md.read_trajectory(tmp_path / f"{name}.h5", replica=k)]
            for name in ("whole", "parts")
        )
        assert len(first) == (2 if k == 1 else 7)
        assert np.array_equal(first, second)


def test_the_last_replica_is_an_error(tmp_path: Path) -> None:
    options = {**QUIET, "trajectory": tmp_path / "run.xyz", "interval": 5}
    with pytest.raises(md.SimulationDiverged, match=r"replica 0, step 12.*shorter time step") as e:
        md.run(cluster(5), Sabotage("nan"), md.NVE(4.0), 60, **options)
    assert isinstance(e.value, ValueError) and e.value.incidents[0].step == 12
    assert torch.isfinite(e.value.frozen[0].positions).all()
    assert len(list(md.read_trajectory(tmp_path / "run.xyz"))) == 3


def test_an_error_that_is_nobodys_is_raised() -> None:
    class Broken(LennardJones):
        def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
            if atoms.n_systems > 1 and atoms.positions.std() > 0:
                raise ValueError("batches are too much for me")
            return super().__call__(atoms, stress=stress)

    with pytest.raises(ValueError, match="too much for me"):
        md.run([cluster(4), cluster(5)], Broken(), md.NVE(4.0), 5, **QUIET)


def test_too_long_a_time_step_is_noticed() -> None:
    """A real disaster, of the spring that is too stiff for the step."""
    soft, stiff = Atoms("C", [[0.1, 0, 0]], masses=[12.0]), Atoms("C", [[0.1, 0, 0]], masses=[0.1])
    with pytest.warns(md.MDWarning, match=r"replica 1.*(force on atom 0|energy changed|temper)"):
        result = md.run([soft, stiff], Harmonic(20.0), md.NVE(4.0), 400, temperature=0.0)
    assert result.state.replica.tolist() == [0]


def run_water(distances: list[float], watchdog: md.Watchdog) -> md.Run:
    """O-H pulled to given distances by hand, one step each."""
    water = molecule("H2O")
    direction = water.positions[1] - water.positions[0]
    direction /= np.linalg.norm(direction)

    class Puppet:
        n = 0

        def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
            length = distances[min(Puppet.n, len(distances) - 1)]
            Puppet.n += 1
            target = torch.tensor(water.positions[0] + length * direction)
            atoms.positions[1] = target  # what no force field may do
            zero = torch.zeros_like(atoms.positions)
            return md.Forces(zero[:1, 0], zero)

    return md.run(water, Puppet(), md.NVE(1.0), len(distances), temperature=0.0, watchdog=watchdog)


def test_bonds_and_contacts() -> None:
    every = md.Watchdog(interval=1, fixed_bonds=True)
    assert not run_water([0.96, 1.2, 1.5, 0.9, 1.0], every).incidents
    with pytest.raises(
        md.SimulationDiverged, match=r"step 2: the bond of atoms 0 \(O\) and 1 \(H\) broke"
    ):
        run_water([0.96, 1.2, 2.0], every)
    assert not run_water([0.96, 1.2, 2.0], md.Watchdog(interval=1)).incidents
    with pytest.raises(
        md.SimulationDiverged, match=r"atoms 0 \(O\) and 1 \(H\) are at 0.41 of the sum"
    ):
        run_water([0.96, 0.4], md.Watchdog(interval=1))
    assert not run_water([0.96, 0.4], md.Watchdog(interval=1, min_distance=None)).incidents


def test_a_bond_that_forms() -> None:
    pair = Atoms("H2", [[0, 0, 0], [0, 0, 2.0]], momenta=[[0, 0, 0.05], [0, 0, -0.05]])

    class Free:
        def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
            zero = torch.zeros_like(atoms.positions)
            return md.Forces(zero[:1, 0], zero)

    with pytest.raises(md.SimulationDiverged, match=r"and 1 \(H\) formed"):
        md.run(pair, Free(), md.NVE(5.0), 200, watchdog=md.Watchdog(fixed_bonds=True, interval=1))


def test_bad_limits() -> None:
    with pytest.raises(ValueError, match="max_force must be positive"):
        md.Watchdog(max_force=0.0)
    with pytest.raises(ValueError, match="max_uncertainty must be positive"):
        md.Watchdog(max_uncertainty=float("nan"))
    with pytest.raises(ValueError, match="interval must be 1"):
        md.Watchdog(interval=0)
