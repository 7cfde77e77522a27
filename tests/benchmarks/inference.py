"""Energy and forces through ASE's calculator interface: the fast path beside other programs.

    python tests/benchmarks/inference.py [--threads 1 2] [--systems aspirin water192] [...]
        [--peer torchmd-net=PYTHON aimnet=PYTHON mace-torch=PYTHON torchani=PYTHON] [--aimnet FILE]
    python tests/benchmarks/inference.py --systems --batch --scaling --large 100000

The table: TensorNets with the same random weights in ours (fused and eager) and, written as its
checkpoint, in torchmd-net's own ASE calculator (its default Warp kernels, and its plain torch
operations); and other models of about that cost: AIMNet2 in aimnet's calculator, with a TorchScript
file of Auto3D as weights (--aimnet), MACE with random weights and the sizes of MACE-OFF23 small,
ANI-2x of torchani (8 members, random weights). float32 on the CPU.

Each of these runs in an interpreter of its own (--peer; without one, in this one), so that they
need not be installed together; one that is missing is left out, with the reason. Contestants take
turns of three calls. Positions move between calls as in dynamics at room temperature (up to 0.014 Å
per call), so no cache helps, but the skin of a neighbor list does, and now and then the list is
made anew. Medians of the time on the clock and of the processor time, which a busy machine changes
less. Errors are largest differences from our eager float64 in the same positions.

--batch    molecules per second of aspirin: `NNPCalculator.evaluate` for 1 to 512 of them, and
           torchmd-net's network and its derivative in batches of 1 to 64, without a calculator
--scaling  time over atoms of periodic water boxes, 192 to 24,000 atoms, and its exponent
--large N  one call for a water box of about N atoms and the largest memory of the process until
           then: alone on the command line (`--systems --large 100000`) it is that of the call
The first of --channels and of --threads is theirs. Prints Markdown, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from inference_peers import PROGRAMS, Peer, PeerError, timed

from nnpcalc import AtomsBatch, NNPCalculator, build_potential
from nnpcalc.cli.benchmark import aspirin, water_box
from nnpcalc.interop.torchmdnet import save_checkpoint
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential

ELEMENTS = (1, 6, 7, 8)
CUTOFF, RADIAL, LAYERS = 5.0, 32, 2
AMPLITUDE, PERIOD = 0.2, 90  # Å and calls of the atoms' oscillation
TURN = 3  # calls, of which the first meets caches full of others' data, unlike dynamics

Call = Callable[[Atoms, int], dict[str, Any]]  # of a structure and the threads, as `timed` answers
Variant = tuple[str, int | None, dict[str, Any]]  # name, channels, what its calculator is made of


def hexadecane() -> Atoms:
    """Hexadecane, C16H34, 50 atoms, stretched out."""
    n = 16
    x, y = 1.26 * np.arange(-1, n + 1), 0.43 * (-1.0) ** np.arange(n + 2)
    chain = np.stack((x, y, np.zeros(n + 2)), 1)
    hydrogen = []
    for k in range(1, n + 1):
        side = np.sign(y[k])
        hydrogen += [chain[k] + [0.0, 0.63 * side, z] for z in (0.89, -0.89)]
    for k, beyond in ((1, 0), (n, n + 1)):
        bond = chain[beyond] - chain[k]
        hydrogen.append(chain[k] + bond * 1.09 / np.linalg.norm(bond))
    return Atoms("C16H34", positions=[*chain[1:-1], *hydrogen])


SYSTEMS: dict[str, Callable[[], Atoms]] = {
    "aspirin": aspirin,
    "hexadecane": hexadecane,
    "water192": lambda: water_box(4),
    "water648": lambda: water_box(6),
}


class Moving:
    """A structure whose atoms oscillate; `at(k)` is it at call k, for any calculator."""

    def __init__(self, atoms: Atoms) -> None:
        generator = np.random.default_rng(0)
        self.atoms, self.start = atoms, atoms.positions.copy()
        way = generator.normal(size=self.start.shape)
        self.way = AMPLITUDE * way / np.linalg.norm(way, axis=1, keepdims=True)
        self.phase = generator.uniform(0.0, 2 * np.pi, (len(atoms), 1))

    def at(self, k: int) -> Atoms:
        atoms = self.atoms.copy()
        atoms.positions = self.start + self.way * np.sin(2 * np.pi * k / PERIOD + self.phase)
        return atoms


def pairs_per_atom(atoms: Atoms) -> float:
    """Directed pairs within the cutoff."""
    return neighbor_list(AtomsBatch.from_atoms(atoms), CUTOFF).n_pairs / len(atoms)


# --- contestants ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """What takes part for one structure; channels are those of a network that we have too."""

    call: Call
    channels: int | None = None


def potential_of(channels: int) -> Potential:
    """A TensorNet with random weights."""
    return build_potential(
        "tensornet", ELEMENTS, seed=1, channels=channels, layers=LAYERS, radial_functions=RADIAL,
        cutoff=CUTOFF,
    )  # fmt: skip


def our_call(channels: int, backend: str = "auto", dtype: str = "float32") -> Call:
    return partial(
        timed, NNPCalculator(potential_of(channels), device="cpu", backend=backend, dtype=dtype)
    )


class Peers:
    """The other programs that are there, and why others are not.

    Attributes:
        missing: by program, the reason.
        versions: by program.
    """

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self._options = options
        self._peers: dict[str, Peer] = {}
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        self._checkpoints = {size: f"{directory}/{size}.ckpt" for size in options.channels}
        for size, file in self._checkpoints.items():
            save_checkpoint(potential_of(size), file)
        self.missing: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        for program, (distribution, _) in PROGRAMS.items():
            if not wanted(program, options) or not (options.systems or options.batch):
                continue
            try:
                if program == "AIMNet2" and not options.aimnet:
                    raise PeerError("its weights are given with --aimnet")
                peer = Peer(program, options.peer.get(distribution, sys.executable))
            except PeerError as error:
                self.missing[program] = str(error)
                continue
            stack.callback(peer.close)
            self._peers[program], self.versions[program] = peer, peer.versions

    def build(self, moving: Moving, molecules: int = 0) -> dict[str, Contestant]:
        """Calculators for a structure; torchmd-net's only if that is a batch of molecules."""
        made = {}
        for program, peer in self._peers.items():
            if molecules and not program.startswith("torchmd-net"):
                continue
            for key, channels, arguments in self._variants(program, moving, molecules):
                try:
                    peer.build(key, moving.atoms, **arguments)
                    peer.call(key, moving.at(-3), 1)
                except PeerError as error:
                    self.missing[f"{key} ({len(moving.atoms)} atoms)"] = str(error)
                else:
                    made[key] = Contestant(partial(peer.call, key), channels)
        return made

    def _variants(self, program: str, moving: Moving, molecules: int) -> list[Variant]:
        """What a program offers."""
        if program == "AIMNet2":
            return [(program, None, {"weights": self._options.aimnet})]
        if not program.startswith("torchmd-net"):
            return [(program, None, {})]
        # It works on lists of a fixed size, so this is as tight as it can be. Memory is set aside
        # for the average, and where that runs out it raises an error.
        n = len(moving.atoms) // max(1, molecules)
        most = max(pairs_per_atom(moving.at(k)[:n]) for k in range(0, PERIOD, 15))
        size = {"neighbors": int(1.1 * most) + 2, "molecules": molecules}
        return [
            (f"{program}, {channels}", channels, {"checkpoint": file, **size})
            for channels, file in self._checkpoints.items()
        ]


def wanted(name: str, options: argparse.Namespace) -> bool:
    return not options.only or name.startswith(tuple(options.only))


def contestants(moving: Moving, options: argparse.Namespace, peers: Peers) -> dict[str, Contestant]:
    """By name, ours first."""
    made = {}
    for channels in options.channels:
        for backend in ("fused", "eager"):
            if wanted(f"nnpcalc {backend}", options):
                call = our_call(channels, backend)
                made[f"nnpcalc {backend}, {channels}"] = Contestant(call, channels)
    return made | peers.build(moving)


# --- the table -----------------------------------------------------------------------------------


def medians(calls: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    clock, cpu = (statistics.median(call[key] for call in calls) for key in ("clock", "cpu"))
    return clock, cpu


def measure(
    calls: dict[str, Call], moving: Moving, threads: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Times of the calls in turns, after two calls that do not count."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for call in calls.values():
        call(moving.at(-2), threads)  # what is compiled or tabulated once
        call(moving.at(-1), threads)
    begin = time.monotonic()
    for k in range(options.rounds):
        if k and time.monotonic() - begin > options.seconds:
            break
        for name, call in calls.items():
            found[name] += [call(moving.at(TURN * k + m), threads) for m in range(TURN)]
    rows = {}
    for name, calls_of in found.items():
        clock, cpu = medians(calls_of)
        rows[name] = {"clock_ms": 1e3 * clock, "cpu_ms": 1e3 * cpu, "calls": len(calls_of)}
    return rows


def errors(
    made: dict[str, Contestant], moving: Moving, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Of the contestants with our weights, eV per atom and eV/Å, and the largest force there is."""
    worst: dict[str, dict[str, float]] = {}
    for channels in options.channels:
        mine = {who: one for who, one in made.items() if one.channels == channels}
        if not mine:
            continue
        exact = our_call(channels, "eager", "float64")
        for k in (3, 50):
            reference = exact(moving.at(k), options.threads[0])
            for who, one in mine.items():
                found = one.call(moving.at(k), options.threads[0])
                now = {
                    "energy_error": abs(found["energy"] - reference["energy"]) / len(moving.atoms),
                    "force_error": float(np.abs(found["forces"] - reference["forces"]).max()),
                    "largest_force": float(np.abs(reference["forces"]).max()),
                }
                before = worst.get(who, {})
                worst[who] = {key: max(x, before.get(key, 0.0)) for key, x in now.items()}
    return worst


def table(name: str, options: argparse.Namespace, peers: Peers) -> dict[str, Any]:
    """One structure, all contestants."""
    moving = Moving(SYSTEMS[name]())
    made = contestants(moving, options, peers)
    rows: dict[str, Any] = {
        who: {"channels": one.channels, "threads": {}} for who, one in made.items()
    }
    for who, error in errors(made, moving, options).items():
        rows[who].update(error)
    for threads in options.threads:
        calls = {who: one.call for who, one in made.items()}
        for who, times in measure(calls, moving, threads, options).items():
            rows[who]["threads"][threads] = times
    return {"atoms": len(moving.atoms), "rows": rows}


def print_table(name: str, result: dict[str, Any]) -> None:
    """Markdown; ratios to our fused network of the same size, else to the first."""
    rows = result["rows"]
    fused = {
        row["channels"]: row["threads"]
        for who, row in rows.items()
        if who.startswith("nnpcalc fused")
    }
    print(f"\n### {name}, {result['atoms']} atoms\n")
    print("| | threads | ms | CPU ms | times ours, clock (CPU) | error, eV/atom | error, eV/Å |")
    print("|---|---|---|---|---|---|---|")
    for who, row in rows.items():
        error = "| |"
        if "force_error" in row:
            error = f"{row['energy_error']:.0e} | {row['force_error']:.0e} |"
        ours = fused.get(row["channels"], next(iter(fused.values()), None))
        for threads, t in row["threads"].items():
            ratio = ""
            if ours is not None:
                clock, cpu = (t[key] / ours[threads][key] for key in ("clock_ms", "cpu_ms"))
                ratio = f"{clock:.1f} ({cpu:.1f})"
            print(
                f"| {who} | {threads} | {t['clock_ms']:.1f} | {t['cpu_ms']:.1f} | {ratio} | {error}"
            )
    forces = [row["largest_force"] for row in rows.values() if "largest_force" in row]
    if forces:
        print(f"\nThe largest force of these random networks is {max(forces):.2g} eV/Å.")
    sys.stdout.flush()


# --- the arithmetic floor ------------------------------------------------------------------------


def flops_per_atom(channels: int, pairs: float) -> float:
    """Arithmetic of energy and forces with tabulated radial functions, each number computed once.

    Per directed pair (a product and a sum count two): a spline of 3 F values 21 F, its slope as
    much; a message 18 F forward, 18 F and 27 F in reverse; the embedding 22 F and 43 F. Per atom:
    nine components through 1 + 2 L mixing matrices, two perceptrons, and the same in reverse.
    """
    f = channels
    each_pair = LAYERS * (39 + 87) * f + (43 + 85) * f
    mixing = 2 * (1 + 2 * LAYERS) * 9 * 2 * f * f
    return pairs * each_pair + mixing + 2 * (16 + 8) * f * f


def gemm_rate(channels: int) -> float:
    """FLOP/s of the matrix products that mix channels, on one thread: what the machine can do."""
    torch.set_num_threads(1)
    a, b = torch.rand(1728, channels), torch.rand(channels, channels)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    best = 1.0
    for _ in range(30):
        begin = time.process_time()
        for _ in range(5):
            torch.mm(a, b, out=out)
        best = min(best, time.process_time() - begin)
    return 5 * 2 * 1728 * channels * channels / best


def print_floor(name: str, result: dict[str, Any]) -> None:
    """How far ours is from the arithmetic alone, at the rate of matrix products."""
    atoms = SYSTEMS[name]()
    pairs = pairs_per_atom(atoms)
    for who, row in result["rows"].items():
        if not who.startswith("nnpcalc fused") or 1 not in row["threads"]:
            continue
        flops, rate = flops_per_atom(row["channels"], pairs), gemm_rate(row["channels"])
        row["floor_ms"], row["gflops"] = 1e3 * len(atoms) * flops / rate, rate / 1e9
        print(
            f"\nFloor of {row['channels']} channels, tabulated and fused: {row['floor_ms']:.1f} ms "
            f"({pairs:.0f} pairs and {flops / 1e6:.1f} MFLOP per atom, {rate / 1e9:.0f} GFLOP/s); "
            f"ours takes {row['threads'][1]['cpu_ms'] / row['floor_ms']:.1f} times as long."
        )


# --- batches, scaling, memory --------------------------------------------------------------------


def walk(call: Call, moving: Moving, threads: int) -> Callable[[], dict[str, Any]]:
    """Calls in positions that move."""
    step = count()
    return lambda: call(moving.at(next(step)), threads)


def repeat(timing: Callable[[], dict[str, Any]], times: int) -> tuple[float, float]:
    """Medians, after two calls that do not count."""
    return medians([timing() for _ in range(times + 2)][2:])


def batch(options: argparse.Namespace, peers: Peers) -> list[dict[str, Any]]:
    """Molecules per second."""
    threads, channels = options.threads[0], options.channels[0]
    torch.set_num_threads(threads)
    calculator = NNPCalculator(potential_of(channels), device="cpu")
    moving, step = Moving(aspirin()), count()

    def evaluate(molecules: int) -> dict[str, float]:
        structures = [moving.at(next(step)) for _ in range(molecules)]
        clock, cpu = time.perf_counter(), time.process_time()
        calculator.evaluate(structures)
        return {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}

    print(f"\n### Aspirin in batches, {channels} channels, threads: {threads}\n")
    print("| | at once | molecules/s | molecules per CPU s |\n|---|---|---|---|")
    rows = []

    def row(who: str, molecules: int, timing: Callable[[], dict[str, Any]]) -> None:
        times = max(1, min(options.rounds, 9 if molecules < 64 else 3))
        clock, cpu = repeat(timing, times)
        rows.append({"who": who, "molecules": molecules, "seconds": clock, "cpu_seconds": cpu})
        print(f"| {who} | {molecules} | {molecules / clock:.0f} | {molecules / cpu:.0f} |")

    for molecules in (1, 8, 64, 512):
        row("nnpcalc", molecules, partial(evaluate, molecules))
    for molecules in (1, 8, 64):
        together = Moving(sum((aspirin() for _ in range(molecules)), Atoms()))
        for who, peer in peers.build(together, molecules).items():
            if peer.channels == channels:
                row(who, molecules, walk(peer.call, together, threads))
    return rows


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Time over atoms of periodic water, and the exponent of a power law by least squares."""
    threads, channels = options.threads[0], options.channels[0]
    print(f"\n### Boxes of water, {channels} channels, threads: {threads}\n")
    print("| atoms | s | CPU s | CPU µs per atom |\n|---|---|---|---|")
    call, rows = our_call(channels), []
    for side in (4, 6, 10, 15, 20):
        moving = Moving(water_box(side))
        n, times = len(moving.atoms), max(1, min(options.rounds, 7 if side < 10 else 3))
        clock, cpu = repeat(walk(call, moving, threads), times)
        rows.append({"atoms": n, "seconds": clock, "cpu_seconds": cpu})
        print(f"| {n} | {clock:.3f} | {cpu:.3f} | {1e6 * cpu / n:.0f} |", flush=True)
    logs = np.log([[row["atoms"], row["cpu_seconds"]] for row in rows])
    exponent = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    print(f"\nCPU time grows as atoms^{exponent:.3f}.")
    return {"rows": rows, "exponent": exponent}


def peak_gib() -> float:
    """Largest resident memory of the process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def large(options: argparse.Namespace) -> dict[str, Any]:
    """One call for very many atoms, and the peak of the resident memory."""
    threads, channels = options.threads[0], options.channels[0]
    atoms, call = water_box(round((options.large / 3) ** (1 / 3))), our_call(channels)
    call(water_box(4), threads)
    before = peak_gib()
    found = call(atoms, threads)
    clock, cpu, peak = found["clock"], found["cpu"], peak_gib()
    print(f"\n### {len(atoms)} atoms of water, {channels} channels, threads: {threads}\n")
    print(f"{clock:.1f} s ({cpu:.1f} CPU s), peak {peak:.2f} GiB ({before:.2f} GiB before)")
    return {"atoms": len(atoms), "seconds": clock, "cpu_seconds": cpu, "peak_gib": peak}


def main() -> None:
    distributions = sorted({distribution for distribution, _ in PROGRAMS.values()})
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--systems", nargs="*", choices=[*SYSTEMS], default=[*SYSTEMS])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--channels", nargs="+", type=int, default=[128, 64])
    parser.add_argument("--only", nargs="+", help="contestants, by the beginning of the name")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each")
    parser.add_argument("--seconds", type=float, default=120.0, help="then no more turns")
    parser.add_argument(
        "--peer", nargs="+", default=[], metavar="NAME=PYTHON",
        help=f"interpreters of other programs: {', '.join(distributions)}",
    )  # fmt: skip
    parser.add_argument("--aimnet", metavar="FILE", help="TorchScript file of AIMNet2 in Auto3D")
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--large", type=int, metavar="ATOMS")
    parser.add_argument("--json", default="inference.json")
    options = parser.parse_args()
    options.peer = dict(entry.partition("=")[::2] for entry in options.peer)
    if unknown := set(options.peer) - set(distributions):
        parser.error(f"--peer knows {', '.join(distributions)}, not {', '.join(unknown)}")
    warnings.filterwarnings("ignore")
    result: dict[str, Any] = {
        "options": vars(options), "torch": torch.__version__, "machine": platform.machine(),
        "systems": {},
    }  # fmt: skip
    print(f"float32, torch {torch.__version__}, {platform.machine()}")
    with ExitStack() as stack:
        peers = Peers(options, stack)
        for program, versions in peers.versions.items():
            print(f"{program}: version {versions['version']}, torch {versions['torch']}")
        for name in options.systems:
            result["systems"][name] = table(name, options, peers)
            print_table(name, result["systems"][name])
            print_floor(name, result["systems"][name])
        if options.batch:
            result["batch"] = batch(options, peers)
        for who, reason in peers.missing.items():
            print(f"\nwithout {who}: {reason}")
        result["versions"], result["missing"] = peers.versions, peers.missing
    if options.scaling:
        result["scaling"] = scaling(options)
    if options.large:
        result["large"] = large(options)
    Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
