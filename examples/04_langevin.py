"""Langevin dynamics at 300 K with a progress bar, a trajectory and a plot.

python examples/04_langevin.py                                   # acetamide, 0.5 ps
python examples/04_langevin.py --molecule my.xyz --charge -1 --steps 20000 --output run
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import Trajectory, read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from nnpcalc import NNPCalculator


def structure(name: str, charge: int) -> Atoms:
    """A file, or a molecule of ASE's g2 collection."""
    atoms = read(name) if Path(name).exists() else molecule(name)
    atoms.info["charge"] = charge
    return atoms


def progress(blocks: range) -> Iterable[int]:
    """The blocks with a progress bar, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return blocks
    return tqdm(blocks, desc="Langevin", unit="block", ncols=80)


def plot(
    times: list[float], energies: list[float], temperatures: list[float], target: float, to: Path
) -> None:
    """Potential energy and temperature over time, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    upper.plot(times, np.array(energies) - energies[0], lw=0.8, color="tab:blue")
    upper.set_ylabel("potential energy / eV\n(first = 0)")
    lower.plot(times, temperatures, lw=0.8, color="tab:red")
    lower.axhline(target, color="black", lw=0.8, ls="--", label="thermostat")
    lower.set_ylabel("temperature / K")
    lower.set_xlabel("time / ps")
    lower.legend(loc="upper right")
    figure.savefig(to, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Langevin dynamics of a molecule.")
    parser.add_argument("--model", default="tensornet-spice", help="shipped name or path")
    parser.add_argument("--molecule", default="CH3CONH2", help="a name ASE knows, or a file")
    parser.add_argument("--charge", type=int, default=0, help="total charge, e")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--steps", type=int, default=1000, help="number of steps")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--friction", type=float, default=0.01, help="1/fs")
    parser.add_argument("--interval", type=int, default=5, help="steps between saved frames")
    parser.add_argument("--seed", type=int, default=1, help="of velocities and noise")
    parser.add_argument("--output", type=Path, default=Path("langevin"), help="files' stem")
    options = parser.parse_args()

    atoms = structure(options.molecule, options.charge)
    atoms.calc = NNPCalculator(options.model)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    rng = np.random.default_rng(options.seed)
    # from a minimum, half of the kinetic energy soon turns into potential energy
    thermalize_momenta(atoms, 2.0 * options.temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        timestep=options.timestep * units.fs,
        temperature_K=options.temperature,
        friction=options.friction / units.fs,
        fixcm=False,
        rng=rng,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    times: list[float] = []
    energies: list[float] = []
    temperatures: list[float] = []
    with Trajectory(options.output.with_suffix(".traj"), "w", atoms) as trajectory:
        for _ in progress(range(max(1, options.steps // options.interval))):
            dynamics.run(options.interval)
            trajectory.write()
            times.append(dynamics.get_time() / (1000.0 * units.fs))
            energies.append(atoms.get_potential_energy())
            temperatures.append(atoms.get_temperature())
    picture = options.output.with_suffix(".png")
    plot(times, energies, temperatures, options.temperature, picture)
    half = len(temperatures) // 2
    spread = options.temperature * (2.0 / (3.0 * len(atoms))) ** 0.5  # of a canonical ensemble
    print(
        f"{atoms.get_chemical_formula()}, charge {atoms.calc.state.charge:+d}: {times[-1]:.2f} ps, "
        f"mean temperature {np.mean(temperatures[half:]):.0f} K over the second half "
        f"(instantaneous: +- {spread:.0f} K)"
    )
    print(f"trajectory: {options.output.with_suffix('.traj')}")
    print(f"plot:       {picture}")


if __name__ == "__main__":
    main()
