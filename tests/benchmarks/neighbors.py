"""Neighbor lists of this package beside others: time, memory, scaling.

    python tests/benchmarks/neighbors.py                  # the table of sizes, and its JSON
    python tests/benchmarks/neighbors.py --crossover      # where brute force and cell list meet

Every program builds the full list with vectors and distances of the same
random atoms (0.1 per Å^3, cutoff 5 Å), in one process on one thread, one after the other in every
repeat. Times are medians of the CPU time of the process, memory is the rise of its peak during one
build. Programs that are not installed are left out and named. On a CUDA device (--device cuda) the
times are wall times around a synchronisation and the memory is torch's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import VerletList, neighbor_list, pair_distances, pair_vectors
from nnpcalc.neighbors.pairs import accept
from nnpcalc.neighbors.search import torch_candidates

CUTOFF, DENSITY, SEED = 5.0, 0.1, 20261121
TOO_LONG = 6.0  # s; a program that would take longer is left out of a row
Build = Callable[[], int]  # returns the number of pairs


@dataclass(frozen=True)
class Measurement:
    """One program at one size; times in ms, memory in MB, None where it was left out."""

    program: str
    atoms: int
    systems: int
    periodic: bool
    milliseconds: float | None
    fastest: float | None
    megabytes: float | None
    pairs: int | None
    note: str = ""


def random_systems(atoms: int, systems: int, periodic: bool) -> list[Atoms]:
    """Uniform random atoms in cubes."""
    rng = np.random.default_rng(SEED + atoms)
    length = (atoms / DENSITY) ** (1 / 3)
    return [
        Atoms(
            numbers=np.full(atoms, 2),
            positions=rng.random((atoms, 3)) * length,
            cell=[length] * 3,
            pbc=periodic,
        )
        for _ in range(systems)
    ]


# --- the programs ------------------------------------------------------------------------------


def build_ours(structures: list[Atoms], device: str) -> Build:
    batch = AtomsBatch.from_atoms(structures).to(device)
    return lambda: neighbor_list(batch, CUTOFF).n_pairs


def build_verlet(structures: list[Atoms], device: str) -> Build:
    """An update that need not search."""
    batch = AtomsBatch.from_atoms(structures).to(device)
    neighbors = VerletList(CUTOFF, skin=0.5)
    neighbors.update(batch)
    return lambda: neighbors.update(batch).n_pairs


def build_vesin(structures: list[Atoms], device: str, by_receiver: bool = False) -> Build:
    from vesin import NeighborList

    search = NeighborList(cutoff=CUTOFF, full_list=True, sorted=by_receiver, n_threads=1)
    arrays = [(a.positions, a.cell.array, a.pbc) for a in structures]
    return lambda: sum(
        len(search.compute(points, cell, pbc, "ijSDd", copy=True)[0])
        for points, cell, pbc in arrays
    )


def build_matscipy(structures: list[Atoms], device: str) -> Build:
    from matscipy.neighbours import neighbour_list

    return lambda: sum(len(neighbour_list("ijSDd", a, CUTOFF)[0]) for a in structures)


def build_ase(structures: list[Atoms], device: str) -> Build:
    from ase.neighborlist import primitive_neighbor_list

    return lambda: sum(
        len(primitive_neighbor_list("ijSDd", a.pbc, a.cell.array, a.positions, CUTOFF)[0])
        for a in structures
    )


def build_nvalchemi(structures: list[Atoms], device: str) -> Build:
    """It has no vectors for lists, so they are made here; the room it needs is told in advance."""
    from nvalchemiops.torch.neighbors import (  # type: ignore[import-not-found]
        neighbor_list as search,
    )

    batch = AtomsBatch.from_atoms(structures).to(device)
    counts = torch.bincount(neighbor_list(batch, CUTOFF).pairs[0], minlength=batch.n_atoms)
    starts = torch.nn.functional.pad(batch.counts.cumsum(0), (1, 0)).to(torch.int32)
    options = {
        "cell": batch.cell,
        "pbc": batch.pbc,
        "batch_idx": batch.system.to(torch.int32),
        "batch_ptr": starts,
        "return_neighbor_list": True,
        "max_neighbors": int(counts.max()),
    }

    def build() -> int:
        pairs, _, shifts = search(batch.positions, CUTOFF, **options)
        pair_distances(pair_vectors(batch.positions, batch.cell, batch.system, pairs, shifts))
        return pairs.shape[1]

    return build


def build_torchmdnet(structures: list[Atoms], device: str) -> Build:
    """The faster of its two strategies; periodic cells must be twice the cutoff."""
    from torchmdnet.models.utils import OptimizedDistance  # type: ignore[import-not-found]

    batch = AtomsBatch.from_atoms(structures).to(device)
    periodic = bool(batch.pbc.any())
    if periodic and float(batch.cell[0, 0, 0]) < 2 * CUTOFF:
        raise RuntimeError("its cells must be twice the cutoff")
    expected = neighbor_list(batch, CUTOFF).n_pairs
    modules = [
        OptimizedDistance(
            cutoff_upper=CUTOFF,
            max_num_pairs=expected + 64,
            return_vecs=True,
            strategy=strategy,
            box=batch.cell[0] if periodic else None,
        )
        for strategy in ("cell", "brute")
    ]
    best, module = None, None
    for candidate in modules:
        begin = time.process_time()
        candidate(batch.positions, batch.system)
        taken = time.process_time() - begin
        if best is None or taken < best:
            best, module = taken, candidate
        if taken > TOO_LONG:
            break
    assert module is not None
    chosen = module
    return lambda: chosen(batch.positions, batch.system)[0].shape[1]


PROGRAMS: dict[str, Callable[[list[Atoms], str], Build]] = {
    "nnpcalc": build_ours,
    "nnpcalc, skin": build_verlet,
    "vesin": build_vesin,
    "vesin, sorted by i": partial(build_vesin, by_receiver=True),
    "matscipy": build_matscipy,
    "nvalchemi-ops": build_nvalchemi,
    "torchmd-net": build_torchmdnet,
    "ase": build_ase,
}


# --- measuring ---------------------------------------------------------------------------------


def clock(build: Build, device: str) -> tuple[float, int]:
    """Seconds of one build, and its pairs."""
    if device == "cpu":
        begin = time.process_time()
        pairs = build()
        return time.process_time() - begin, pairs
    torch.cuda.synchronize()
    begin = time.perf_counter()
    pairs = build()
    torch.cuda.synchronize()
    return time.perf_counter() - begin, pairs


def peak_memory(build: Build, device: str) -> float | None:
    """MB by which one build raises the peak of the process; None where this cannot be read."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        build()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None

    def read(key: str) -> float:
        line = next(x for x in status.read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        reset.write_text("5")  # forget the peak
    except OSError:
        return None
    resident = read("VmRSS")
    build()
    return max(0.0, read("VmHWM") - resident)


def measure_row(
    atoms: int, systems: int, periodic: bool, repeats: int, device: str, slow: set[str]
) -> list[Measurement]:
    """All programs at one size; `slow` collects those that need not try larger ones."""
    structures = random_systems(atoms, systems, periodic)
    expected = build_ours(structures, device)()
    builds, rows = {}, []
    for name, make in PROGRAMS.items():
        note = ""
        if name in slow:
            note = "too slow"
        else:
            try:
                build = make(structures, device)
                first, pairs = clock(build, device)
                if first > TOO_LONG:
                    slow.add(name)
                if pairs != expected:
                    note = f"{pairs - expected:+d} pairs"
                builds[name] = (build, [first], pairs, note)
                continue
            except ImportError as error:
                note = f"not installed ({error.name})"
            except Exception as error:  # a peer's failure is a result
                note = f"{type(error).__name__}: {error}".splitlines()[0][:70]
        rows.append(Measurement(name, atoms, systems, periodic, None, None, None, None, note))
    for k in range(repeats):
        for name, (build, times, _, _) in builds.items():
            if name in slow:
                continue
            taken, _ = clock(build, device)
            # the first run was to warm up
            builds[name][1][:] = [taken] if k == 0 else [*times, taken]
    for name, (build, times, pairs, note) in builds.items():
        memory = None if name in slow else peak_memory(build, device)
        median, fastest = statistics.median(times) * 1e3, min(times) * 1e3
        rows.append(
            Measurement(name, atoms, systems, periodic, median, fastest, memory, pairs, note)
        )
    return rows


def exponent(rows: list[Measurement], program: str, periodic: bool) -> float | None:
    """Of time in atoms, between the sizes from 2,000 on."""
    points = [
        (r.atoms, r.milliseconds)
        for r in rows
        if r.program == program
        and r.periodic == periodic
        and r.systems == 1
        and r.atoms >= 2000
        and r.milliseconds
    ]
    if len(points) < 2:
        return None
    (n0, t0), (n1, t1) = min(points), max(points)
    return float(np.log(t1 / t0) / np.log(n1 / n0))


def table(rows: list[Measurement]) -> str:
    """ms (MB) of every program at every size."""
    cases = list(dict.fromkeys((r.atoms, r.systems, r.periodic) for r in rows))
    cells = {(r.program, r.atoms, r.systems, r.periodic): r for r in rows}
    lines = ["| atoms | cell | pairs | " + " | ".join(PROGRAMS) + " |"]
    lines.append("|" + "---|" * (3 + len(PROGRAMS)))
    for case in cases:
        atoms, systems, periodic = case
        size = f"{atoms:,}" if systems == 1 else f"{systems:,} x {atoms}"
        texts = []
        for program in PROGRAMS:
            r = cells[(program, *case)]
            if r.milliseconds is None:
                texts.append(r.note)
            else:
                memory = "" if r.megabytes is None else f" ({r.megabytes:.0f})"
                texts.append(f"{r.milliseconds:.2f}{memory} {r.note}".strip())
        pairs = cells[("nnpcalc", *case)].pairs
        kind = "periodic" if periodic else "open"
        lines.append(f"| {size} | {kind} | {pairs:,} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def crossover(repeats: int) -> None:
    """Times of both algorithms of the torch back end, ms."""
    print("| atoms | systems | cell | brute force | cell list |\n|---|---|---|---|---|")
    sizes = [(n, 1) for n in (3, 20, 50, 100, 200, 400, 800)]
    for atoms, systems in [*sizes, (3, 100), (10, 100), (20, 100), (30, 100), (50, 100)]:
        for periodic in (False, True):
            batch = AtomsBatch.from_atoms(random_systems(atoms, systems, periodic))
            times: dict[str, list[float]] = {"brute_force": [], "cell_list": []}
            for _ in range(repeats):
                for algorithm, taken in times.items():

                    def build(batch: AtomsBatch = batch, algorithm: str = algorithm) -> int:
                        found = torch_candidates(batch, CUTOFF, algorithm)
                        return accept(batch, found, CUTOFF).n_pairs

                    taken.append(clock(build, "cpu")[0] * 1e3)
            brute, cells = (statistics.median(t[1:]) for t in times.values())
            kind = "periodic" if periodic else "open"
            print(f"| {atoms} | {systems} | {kind} | {brute:.2f} | {cells:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 200, 2000, 20_000, 100_000])
    parser.add_argument("--molecules", type=int, default=1000, help="of 20 atoms, in one batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmark-neighbors.json"))
    parser.add_argument("--crossover", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.crossover:
        crossover(options.repeats)
        return
    rows: list[Measurement] = []
    slow: set[str] = set()
    cases = [(n, 1) for n in options.sizes]
    for atoms, systems in cases:
        for periodic in (False, True):
            repeats = options.repeats if atoms < 50_000 else min(options.repeats, 3)
            rows += measure_row(atoms, systems, periodic, repeats, options.device, slow)
            print(f"done {atoms} x {systems}, periodic {periodic}", flush=True)
    if options.molecules:
        for periodic in (False, True):
            rows += measure_row(20, options.molecules, periodic, 3, options.device, set())
    print(f"\nCPU ms per build, median (rise of the memory peak, MB); {platform.processor()}\n")
    print(table(rows))
    exponents = {
        f"{program}, {'periodic' if periodic else 'open'}": exponent(rows, program, periodic)
        for program in PROGRAMS
        for periodic in (False, True)
    }
    print("\nscaling exponents from 2,000 atoms on:")
    for name, value in exponents.items():
        print(f"  {name}: " + ("-" if value is None else f"{value:.2f}"))
    record = {
        "cutoff": CUTOFF,
        "density": DENSITY,
        "seed": SEED,
        "device": options.device,
        "torch": torch.__version__,
        "measurements": [asdict(r) for r in rows],
        "exponents": exponents,
    }
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwritten to {options.json}")


if __name__ == "__main__":
    main()
