"""Molecular dynamics: drift of the energy at constant energy, and speed beside other programs.

    python tests/benchmarks/md.py drift [--time 50] [--directory runs] [--systems water] [...]
    python tests/benchmarks/md.py speed [--threads 1] [--replicas 1 8 64] [...]

drift   A molecule of 30 atoms and a periodic box of 192, or ethanol, brought to 300 K, then at
        constant energy: with a skin of the neighbor list, without, with wrapped positions, and in a
        batch; on the back end one likes. The drift
        is the slope of a straight line through the total energy of each replica. Every run keeps a
        trajectory and a checkpoint in the directory; the same command goes on where it was stopped,
        and with a longer --time it makes them longer.
speed   One model in several loops, alternating, medians. The overhead of our loop is its processor
        time beyond that of the neighbor list and the model, which are timed in as many single
        steps; below zero where steps taken without Python save more than the loop costs. Left out
        are programs that are not installed: torchmd-net with its ASE calculator (a network of the
        same size, written in its format), torch-sim (our model behind its interface).

Both print a table and write JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.md.langevin import Langevin as AseLangevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.units import fs

from nnpcalc import AtomsBatch, NNPCalculator, md
from nnpcalc.cli.benchmark import aspirin, water_box
from nnpcalc.md.forcefield import ModelForceField

KELVIN = 300.0
FRICTION = 0.002  # 1/fs


def nonanol() -> Atoms:
    """1-Nonanol, C9H20O, 30 atoms, stretched out."""
    x = 1.26 * np.arange(-1, 11)
    y = 0.43 * (-1.0) ** np.arange(12)
    chain = np.stack((x, y, np.zeros(12)), 1)
    positions, hydrogen = list(chain[1:11]), []
    for k in range(1, 10):
        side = np.sign(y[k])
        hydrogen += [chain[k] + [0.0, 0.63 * side, 0.89], chain[k] + [0.0, 0.63 * side, -0.89]]
    for k, beyond, length in ((1, 0, 1.09), (10, 11, 0.97)):
        bond = chain[beyond] - chain[k]
        hydrogen.append(chain[k] + bond * length / np.linalg.norm(bond))
    return Atoms("C9OH20", positions=positions + hydrogen)


# --- drift ---------------------------------------------------------------------------------------


class Wrapped:
    """A force field that gets every atom inside the cell, wherever it has gone."""

    def __init__(self, inner: ModelForceField) -> None:
        self.inner, self.device = inner, inner.device
        self.description = f"wrapped {inner.description}"

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        edges = atoms.cell.diagonal(dim1=1, dim2=2).index_select(0, atoms.system)  # cubic boxes
        inside = atoms.positions - edges * torch.floor(atoms.positions / edges)
        return self.inner(replace(atoms, positions=inside), stress=stress)


#: Structure, and replicas in the batch.
SYSTEMS: dict[str, tuple[Callable[[], Atoms], int]] = {
    "molecule": (nonanol, 4),
    "water": (water_box, 2),
    "ethanol": (lambda: molecule("CH3CH2OH"), 1),
}

#: Skin in Å, wrapped, and whether all replicas run together.
VARIANTS = {
    "skin": (0.5, False, False),
    "no skin": (0.0, False, False),
    "wrapped": (0.5, True, False),
    "batch": (0.5, False, True),
}


def equilibrated(system: str, options: argparse.Namespace) -> md.MDState:
    """The replicas at 300 K and at rest as a whole, step 0."""
    make, count = SYSTEMS[system]
    result = md.run(
        [make()] * count, options.model, md.Langevin(0.5, KELVIN, friction=0.02),
        round(options.equilibration * 2000), seed=1, resume=True, checkpoint_interval=200,
        checkpoint=options.directory / f"{system}-start.ckpt",
    )  # fmt: skip
    return md.without_drift(replace(result.state, step=0, atom_variables={}, system_variables={}))


def drift_of(energy: np.ndarray, step: np.ndarray, timestep: float, n_atoms: int) -> dict[str, Any]:
    """Slope of the energy (eV) and its error, meV per atom and ps, and the fluctuation around it.

    The error is that of a line through the means of 20 pieces, which fluctuate independently.
    """
    if len(step) < 10:
        raise ValueError(f"a line through {len(step)} frames says little: --time 0.1 or more")
    time_ps, scaled = step * timestep / 1000.0, 1000.0 * (energy - energy[0]) / n_atoms
    slope, level = np.polyfit(time_ps, scaled, 1)
    parts = [np.array_split(x, min(20, len(step) // 2)) for x in (time_ps, scaled)]
    pieces = [[part.mean() for part in split] for split in parts]
    _, covariance = np.polyfit(*pieces, 1, cov=True)
    residual = scaled - (slope * time_ps + level)
    return {
        "picoseconds": float(time_ps[-1]),
        "drift": float(slope),
        "error": float(np.sqrt(covariance[0, 0])),
        "fluctuation": float(residual.std()),
    }


def drift(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run, or go on with, everything asked for."""
    import h5py

    options.directory.mkdir(parents=True, exist_ok=True)
    print(f"{options.model}, {options.timestep} fs; drift and fluctuation in meV per atom")
    print(f"{'':<32}{'ps':>7}{'drift/ps':>11}{'+-':>9}{'fluctuation':>13}")
    rows: list[dict[str, Any]] = []
    for system in options.systems:
        first = equilibrated(system, options)
        for dtype in options.dtypes:
            alone: np.ndarray | None = None
            for variant in options.variants:
                skin, wrapped, together = VARIANTS[variant]
                if wrapped and not bool(first.atoms.pbc.any()):
                    continue
                field: Any = ModelForceField(
                    options.model, dtype=dtype, skin=skin, backend=options.backend
                )
                name = f"{system}-{variant.replace(' ', '-')}-{dtype}"
                name += "" if options.backend == "auto" else f"-{options.backend}"
                path = options.directory / f"{name}.h5"
                try:
                    md.run(
                        first if together else first.select([0]),
                        Wrapped(field) if wrapped else field,
                        md.NVE(options.timestep), round(1000 * options.time / options.timestep),
                        trajectory=path, interval=20, resume=True, checkpoint_interval=1000,
                        checkpoint=options.directory / f"{name}.ckpt",
                    )  # fmt: skip
                except md.SimulationDiverged as error:
                    print(f"{name:<32} {error}")
                    rows.append({"name": name, "diverged": str(error)})
                    continue
                with h5py.File(path, "r") as file:
                    done = file["step"][:] >= 0
                    step, energies = file["step"][done], file["conserved_energy"][done]
                    counts = file["counts"][:]
                alone = energies[:, 0] if alone is None else alone
                n = min(len(alone), len(energies))
                same = bool(np.array_equal(alone[:n], energies[:n, 0]))
                for b, count in enumerate(counts):
                    row = drift_of(energies[:, b], step, options.timestep, int(count))
                    label = name + (f" {b}" if together else "")
                    rows.append({"name": label, "same_bits": same if b == 0 else None, **row})
                    note = "  same bits as the first" if same and b == 0 else ""
                    print(
                        f"{label:<32}{row['picoseconds']:>7.2f}{row['drift']:>11.5f}"
                        f"{row['error']:>9.5f}{row['fluctuation']:>13.5f}{note}",
                        flush=True,
                    )
    return rows


# --- speed ---------------------------------------------------------------------------------------


class Timed(ModelForceField):
    """Adds up the processor time of the neighbor list and the model, in single steps."""

    seconds = 0.0

    def _run(self, *arguments: Any) -> dict[str, torch.Tensor]:
        start = time.thread_time()
        output = super()._run(*arguments)
        self.seconds += time.thread_time() - start
        return output


#: Takes a number of steps; returns seconds on the clock, of the processor, and of the latter those
#: of neighbor list and model (NaN if unknown).
Times = tuple[float, float, float]
Chunk = Callable[[int], Times]


def timed(loop: Callable[[], Any]) -> Times:
    """Times of a call."""
    clock, processor = time.perf_counter(), time.process_time()
    loop()
    return time.perf_counter() - clock, time.process_time() - processor, float("nan")


def ours(model: Any, atoms: Atoms, replicas: int, integrator: Any, keep: bool = True) -> Chunk:
    """`md.run` with its watchdog, from its first frame to its last; keep as in `under_ase`.

    Neighbor list and model are timed in a second run of as many steps.
    """
    field, timed_field = ModelForceField(model), Timed(model)
    start = md.run([atoms] * replicas, field, integrator, 0, temperature=KELVIN, seed=1).state
    last = start
    # without forces worth the name atoms fly through each other
    guard = md.Watchdog() if keep else md.Watchdog(min_distance=None)

    def times(field: ModelForceField, n: int) -> tuple[md.MDState, Times]:
        seen: list[tuple[float, float]] = []

        def look(_: md.Frame) -> None:
            seen.append((time.perf_counter(), time.process_time()))

        begin = replace(last if keep else start, step=0)
        run = md.run(begin, field, integrator, n, interval=n, report=look, watchdog=guard)
        clock, processor = (b - a for a, b in zip(*seen, strict=True))
        return run.state, (clock, processor, float("nan"))

    def chunk(n: int) -> Times:
        nonlocal last
        before = timed_field.seconds
        times(timed_field, n)
        last, (clock, processor, _) = times(field, n)
        return clock, processor, timed_field.seconds - before

    return chunk


def under_ase(
    calculator: Any, atoms: Atoms, _replicas: int, langevin: bool, keep: bool = True
) -> Chunk:
    """One replica in ASE's loop; without `keep` every chunk begins in the same place."""
    atoms = atoms.copy()
    atoms.info["charge"] = 0
    MaxwellBoltzmannDistribution(atoms, temperature_K=KELVIN, rng=np.random.default_rng(1))
    atoms.calc, begin = calculator, (atoms.positions.copy(), atoms.get_momenta())

    def chunk(n: int) -> Times:
        if not keep:
            atoms.positions[:] = begin[0]
            atoms.set_momenta(begin[1])
        loop = (
            AseLangevin(atoms, 0.5 * fs, temperature_K=KELVIN, friction=FRICTION / fs)
            if langevin
            else VelocityVerlet(atoms, 0.5 * fs)
        )
        atoms.get_forces()
        return timed(lambda: loop.run(n))

    return chunk


def under_torch_sim(model: Any, atoms: Atoms, replicas: int) -> Chunk:
    """Our model and neighbor list behind torch-sim's interface, in its Langevin loop."""
    import torch_sim
    from torch_sim.integrators.nvt import nvt_langevin_init, nvt_langevin_step
    from torch_sim.models.interface import ModelInterface
    from torch_sim.units import MetalUnits

    field = ModelForceField(model, reproducible=False)

    class Adapter(ModelInterface):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._device, self._dtype = torch.device("cpu"), torch.float64
            self._compute_stress, self._compute_forces = False, True
            self.batch: AtomsBatch | None = None

        def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
            if self.batch is None:
                batch = AtomsBatch.from_atoms([atoms] * replicas)
                self.batch = replace(batch, positions=state.positions)
            else:
                self.batch = replace(self.batch, positions=state.positions)
            found = field(self.batch)
            return {"energy": found.energy, "forces": found.forces}

    adapter = Adapter()
    units: Any = MetalUnits
    kt, dt = (
        torch.tensor(value, dtype=torch.float64)
        for value in (KELVIN * units.temperature, 0.0005 * units.time)
    )
    gamma = torch.tensor(1000 * FRICTION / float(units.time), dtype=torch.float64)
    first = torch_sim.initialize_state(
        [atoms] * replicas, device=torch.device("cpu"), dtype=torch.float64
    )
    state = nvt_langevin_init(first, adapter, kT=kt)

    def loop(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state = nvt_langevin_step(state, adapter, dt=dt, kT=kt, gamma=gamma)

    return lambda n: timed(lambda: loop(n))


def torchmdnet(potential: Any, atoms: Atoms, replicas: int, directory: Path) -> Chunk:
    """torchmd-net's own calculator, with a network of ours in its format."""
    from torchmdnet.calculators import TMDNETCalculator

    from nnpcalc.interop.torchmdnet_write import save_checkpoint

    file = directory / "network.ckpt"
    save_checkpoint(potential, file)
    calculator = TMDNETCalculator(str(file), max_num_neighbors=128)
    return under_ase(calculator, atoms, replicas, True, keep=False)


def same_size(model: Any) -> Any:
    """An untrained network of the size of the model's, on nothing but the geometry: torchmd-net
    knows neither the terms nor the states of ours. Its forces are too weak to tear anything."""
    from nnpcalc import Potential
    from nnpcalc.models.tensornet import TensorNet
    from nnpcalc.weights import load_potential

    torch.manual_seed(1)
    core: Any = load_potential(model).core
    return Potential(TensorNet(replace(core.config, attributes=(), state_embedding=())), (), 1e-3)


def contestants(
    options: argparse.Namespace, directory: Path
) -> dict[tuple[str, str], tuple[int, int, Chunk]]:
    """(system, loop): atoms, replicas and steps."""
    found: dict[tuple[str, str], tuple[int, int, Chunk]] = {}

    def add(
        system: str, loop: str, make: Callable[..., Chunk], model: Any, atoms: Atoms, replicas: int,
        *more: Any,
    ) -> None:  # fmt: skip
        try:
            found[system, loop] = len(atoms), replicas, make(model, atoms, replicas, *more)
        except ImportError as error:
            print(f"{loop}: left out, {error}", file=sys.stderr)

    model, cases = options.model, [("aspirin", aspirin(), n) for n in options.replicas]
    if options.water:
        cases.append(("water", water_box(), 1))
    network = same_size(model)
    for name, atoms, n in cases:
        system = f"{n} {name}"
        add(system, "md Langevin", ours, model, atoms, n, md.Langevin(0.5, KELVIN, FRICTION))
        add(system, "torch-sim Langevin", under_torch_sim, model, atoms, n)
        alone = f"1 {name}, network only"
        if n == 1:
            add(alone, "torchmd-net in ASE", torchmdnet, network, atoms, 1, directory)
        if (alone, "torchmd-net in ASE") in found:
            integrator = md.Langevin(0.5, KELVIN, FRICTION)
            add(
                f"{n} {name}, network only",
                "md Langevin",
                ours,
                network,
                atoms,
                n,
                integrator,
                False,
            )
        if n == 1:
            add(system, "md NVE", ours, model, atoms, 1, md.NVE(0.5))
            add(system, "ASE Langevin", under_ase, NNPCalculator(model), atoms, 1, True)
            add(system, "ASE VelocityVerlet", under_ase, NNPCalculator(model), atoms, 1, False)
    return found


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Chunks of all contestants in turn."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        listed = contestants(options, Path(directory))
        times: dict[tuple[str, str], list[Times]] = {key: [] for key in listed}
        for repeat in range(options.repeats + 1):
            for key, (n_atoms, replicas, chunk) in listed.items():
                n = max(20, round(options.steps * 21 / (n_atoms * replicas)))
                clock, processor, bare = chunk(n)
                if repeat:  # the first one compiles
                    times[key].append((clock / n, processor / n, processor / bare - 1.0))
    print(
        f"{options.model}, 0.5 fs, {options.threads} thread(s), torch {torch.__version__}, "
        f"{platform.machine()}; ns/day of all replicas together"
    )
    print(f"{'':<24}{'':<22}{'ms/step':>10}{'CPU ms':>10}{'ns/day':>9}{'overhead':>10}")
    rows = []
    for (system, loop), values in times.items():
        n_atoms, replicas, _ = listed[system, loop]
        clock, processor, share = (statistics.median(c) for c in zip(*values, strict=True))
        per_day = 86400.0 * 0.5e-6 * replicas / clock
        overhead = "" if np.isnan(share) else f"{share:.1%}"
        print(
            f"{system:<24}{loop:<22}{1e3 * clock:>10.3f}{1e3 * processor:>10.3f}{per_day:>9.3f}"
            f"{overhead:>10}"
        )
        rows.append({
            "system": system, "loop": loop, "atoms": n_atoms, "replicas": replicas,
            "seconds_per_step": clock, "cpu_seconds_per_step": processor, "ns_per_day": per_day,
            "overhead": None if np.isnan(share) else share, "times": values,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["drift", "speed"])
    parser.add_argument("--model", default="tensornet-spice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file to write (default md_drift.json or md_speed.json)")
    runs = parser.add_argument_group("drift")
    runs.add_argument("--time", type=float, default=50.0, help="ps of each run")
    runs.add_argument("--timestep", type=float, default=0.5, help="fs")
    runs.add_argument("--equilibration", type=float, default=2.0, help="ps at 300 K before")
    runs.add_argument("--directory", type=Path, default=Path("md_drift"))
    runs.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=["molecule", "water"])
    runs.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    runs.add_argument("--backend", default="auto", choices=["auto", "eager", "fused"])
    runs.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    loops = parser.add_argument_group("speed")
    loops.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64])
    loops.add_argument("--steps", type=int, default=100, help="of 21 atoms at a time")
    loops.add_argument("--repeats", type=int, default=7)
    loops.add_argument("--no-water", dest="water", action="store_false")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # torch-geometric and Lightning give many
    torch.set_num_threads(options.threads)
    rows = drift(options) if options.what == "drift" else speed(options)
    known = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    file = Path(options.json or f"md_{options.what}.json")
    file.write_text(json.dumps({"options": known, "torch": torch.__version__, "results": rows}))


if __name__ == "__main__":
    main()
