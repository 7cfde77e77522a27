"""Geometry optimisation of 64 molecules: all at once, beside ASE's LBFGS one after the other.

The same model, back end and dtype on both sides, and the same fmax. The molecules are those of
tests/data/unseen.xyz, each copy moved out of place in its own way. The contestants take turns; on a
busy machine the processor time tells more than the time on the clock; both are printed.

Run: python tests/benchmarks/optimize.py [--molecules 64] [--repeats 3] [--fmax 0.01]

Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from ase.optimize import LBFGS as AseLBFGS

from nnpcalc import NNPCalculator, optimize

STRUCTURES = Path(__file__).parents[1] / "data" / "unseen.xyz"

#: Force evaluations and final energies of each molecule.
Outcome = tuple[list[int], list[float]]


def structures(count: int, amplitude: float) -> list[Atoms]:
    frames: list[Atoms] = read(STRUCTURES, ":")
    listed = []
    for k in range(count):
        atoms = frames[k % len(frames)].copy()
        atoms.rattle(amplitude, seed=k)
        listed.append(atoms)
    return listed


def contestants(
    listed: list[Atoms], calculator: NNPCalculator, fmax: float, steps: int
) -> dict[str, Callable[[], Outcome]]:
    def together(method: str) -> Outcome:
        results = optimize(listed, calculator, method=method, fmax=fmax, steps=steps)
        return [r.steps + 1 for r in results], [r.energy for r in results]

    def one_by_one() -> Outcome:
        counts, energies = [], []
        for atoms in listed:
            moving = atoms.copy()
            moving.calc = calculator
            optimizer = AseLBFGS(moving, logfile=None)
            optimizer.run(fmax=fmax, steps=steps)
            counts.append(optimizer.nsteps + 1)
            energies.append(moving.get_potential_energy())
        return counts, energies

    return {"nnpcalc, L-BFGS": lambda: together("lbfgs"), "ASE, LBFGS": one_by_one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tensornet-spice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--molecules", type=int, default=64)
    parser.add_argument("--amplitude", type=float, default=0.05, help="Å, out of place")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="optimize.json", help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calculator = NNPCalculator(options.model, device=options.device, dtype=options.dtype)
    listed = structures(options.molecules, options.amplitude)
    runs = contestants(listed, calculator, options.fmax, options.steps)
    optimize(listed[:2], calculator, steps=2)  # compiles
    calculator.get_potential_energy(listed[0])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    outcomes: dict[str, Outcome] = {}
    for _ in range(options.repeats):
        for name, run in runs.items():
            clock, processor = time.perf_counter(), time.process_time()
            outcomes[name] = run()
            times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    print(
        f"{len(listed)} molecules of {min(map(len, listed))} to {max(map(len, listed))} atoms, "
        f"fmax {options.fmax:g} eV/Å, {calculator.backend.name} {options.dtype} on "
        f"{options.device}, {options.threads} thread(s), torch {torch.__version__}, "
        f"{platform.machine()}"
    )
    print(f"{'':<18}{'evaluations':>12}{'s':>8}{'mol./s':>8}{'CPU s':>8}{'mol./CPU s':>12}")
    table: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        clock, processor = (statistics.median(column) for column in zip(*values, strict=True))
        counts, energies = outcomes[name]
        table[name] = {
            "evaluations": sum(counts), "seconds": clock, "cpu_seconds": processor,
            "energies": energies, "times": values,
        }  # fmt: skip
        print(
            f"{name:<18}{sum(counts):>12d}{clock:>8.1f}{len(listed) / clock:>8.2f}"
            f"{processor:>8.1f}{len(listed) / processor:>12.2f}"
        )
    ours, theirs = (table[name] for name in runs)
    gaps = np.array(ours["energies"]) - np.array(theirs["energies"])
    print(
        f"nnpcalc: {theirs['seconds'] / ours['seconds']:.1f} times as fast "
        f"({theirs['cpu_seconds'] / ours['cpu_seconds']:.1f} in CPU time), "
        f"{ours['evaluations'] / theirs['evaluations']:.2f} times the evaluations; the same energy "
        f"to 1 meV for {(np.abs(gaps) < 1e-3).sum()}, lower for {(gaps <= -1e-3).sum()}, higher "
        f"for {(gaps >= 1e-3).sum()}"
    )
    result = {"options": vars(options), "torch": torch.__version__, "results": table}
    Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
