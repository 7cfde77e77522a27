"""`nnpcalc vib`: harmonic frequencies and the ideal gas that follows from them."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

from nnpcalc.cli.common import (
    add_machine,
    add_model,
    add_structures,
    model_options,
    print_table,
    read_structures,
    signed,
)

if TYPE_CHECKING:
    from nnpcalc.normal_modes import Thermochemistry, Vibrations

EPILOG = """\
Frequencies are those of a stationary point of the same model: optimise first, or give --opt.
Exit status 1: imaginary frequencies, or no minimum found by --opt.

example:
  nnpcalc vib --smiles O --model tensornet-spice --opt --symmetry-number 2
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "vib",
        help="vibrations and thermochemistry",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_structures(parser)
    add_model(parser)
    parser.add_argument("--opt", action="store_true", help="optimise to 0.001 eV/Å first")
    parser.add_argument(
        "--temperature", type=float, default=298.15, metavar="K", help="(default 298.15)"
    )
    parser.add_argument(
        "--pressure", type=float, default=1.01325, metavar="BAR", help="(default 1.01325, 1 atm)"
    )
    parser.add_argument(
        "--symmetry-number", type=int, default=1, metavar="N",
        help="rotations that leave the molecule as it is: 2 of water, 12 of methane (default 1)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object per structure")
    add_machine(parser)
    parser.set_defaults(run=run, dtype="float64")


def run(options: argparse.Namespace) -> int:
    """Print tables of frequencies and thermochemistry, or JSON lines."""
    from nnpcalc.calculator import NNPCalculator
    from nnpcalc.normal_modes import vibrations
    from nnpcalc.optimizer import optimize

    structures = read_structures(options)
    calculator = NNPCalculator(options.model, **model_options(options))
    status = 0
    if options.opt:
        results = optimize(structures, calculator, fmax=1e-3, steps=1000)
        structures = [found.atoms for found in results]
        for k, found in enumerate(results):
            if found.reason:
                _say(f"structure {k} did not converge: {found.reason}")
                status = 1
    for k, atoms in enumerate(structures):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found_modes = vibrations(atoms, calculator)
        for warning in caught:
            _say(str(warning.message))
        gas, reason = None, ""
        try:
            gas = found_modes.thermochemistry(
                options.temperature, 1e5 * options.pressure, options.symmetry_number
            )
        except ValueError as error:
            if found_modes.shape not in ("periodic", "held") and not found_modes.n_imaginary:
                raise
            reason = str(error)
        status = 1 if found_modes.n_imaginary else status
        if options.json:
            print(json.dumps(_record(k, found_modes, gas)))
        else:
            _print(k, found_modes, gas, reason)
    return status


def _say(text: str) -> None:
    print(f"nnpcalc: warning: {text}", file=sys.stderr)


def _print(k: int, found: Vibrations, gas: Thermochemistry | None, reason: str) -> None:
    state = found.state
    print(
        f"structure {k}: {found.atoms.get_chemical_formula()}, charge {signed(state.charge)}, "
        f"multiplicity {state.multiplicity}, {found.shape}, fmax {found.fmax:.1e} eV/Å"
    )
    rows: list[tuple[str, ...]] = [("mode", "frequency/cm^-1", "reduced mass/amu")]
    for mode, (frequency, mass) in enumerate(
        zip(found.frequencies, found.reduced_masses, strict=True)
    ):
        shown = f"{-frequency:.1f}i" if frequency < 0 else f"{frequency:.1f}"
        rows.append((str(mode), shown, f"{mass:.3f}"))
    print_table(rows)
    print(f"zero-point energy  {found.zero_point_energy:.6f} eV")
    if gas is None:
        print(f"no thermochemistry: {reason}")
    else:
        print(
            f"ideal gas at {gas.temperature:g} K and {gas.pressure / 1e5:g} bar, "
            f"symmetry number {gas.symmetry_number}"
        )
        print(f"  enthalpy         {gas.enthalpy:.6f} eV")
        print(f"  entropy          {1e3 * gas.entropy:.6f} meV/K")
        print(f"  Gibbs energy     {gas.gibbs_energy:.6f} eV")
    print()


def _record(k: int, found: Vibrations, gas: Thermochemistry | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "structure": k,
        "formula": found.atoms.get_chemical_formula(),
        "charge": found.state.charge,
        "multiplicity": found.state.multiplicity,
        "shape": found.shape,
        "energy": found.energy,
        "fmax": found.fmax,
        "frequencies": found.frequencies.tolist(),
        "imaginary": found.n_imaginary,
        "zero_point_energy": found.zero_point_energy,
        "thermochemistry": None if gas is None else asdict(gas),
    }
