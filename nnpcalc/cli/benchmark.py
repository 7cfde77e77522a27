"""`nnpcalc benchmark`: how fast a model is on this machine."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nnpcalc.cli.common import add_machine, print_table

if TYPE_CHECKING:
    from ase import Atoms

EPILOG = """\
Energy and forces of structures that move a little from call to call, as in dynamics: network,
derivative, and a neighbor list that has a skin. The figure is the median of the calls; ns/day is
that of one structure (or, for a batch, of all together) at --timestep. Structures with an element
that the model does not know are left out.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("benchmark", help="time a model on this machine", epilog=EPILOG)
    parser.add_argument(
        "--model", default="tensornet-spice", help="name or path (default tensornet-spice)"
    )
    parser.add_argument(
        "--backend", action="append", choices=["eager", "fused", "torchscript"],
        help="may be repeated (default: eager, and fused where there is one)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure (default 2)")
    parser.add_argument("--timestep", type=float, default=0.5, metavar="FS", help="(default 0.5)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object per figure")
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table, or JSON lines."""
    import torch

    from nnpcalc import md
    from nnpcalc.backends import BackendError

    if not options.seconds > 0 or not options.timestep > 0:
        raise ValueError("--seconds and --timestep must be above 0")
    if options.threads is not None:
        _set_threads(options.threads)
    rows = [("structures", "atoms", "backend", "ms per call", "calls", "ns/day")]
    for backend in options.backend or ["eager", "fused"]:
        try:
            field = md.ModelForceField(
                options.model, device=options.device, dtype=options.dtype, backend=backend,
                reproducible=False,
            )  # fmt: skip
        except BackendError as error:
            if options.backend or backend == "eager":
                raise
            print(f"nnpcalc: {backend} is left out: {error}", file=sys.stderr)
            continue
        for name, structures in standard_structures():
            numbers = {int(z) for atoms in structures for z in atoms.numbers}
            if not numbers <= set(field.engine.elements.tolist()):
                continue
            calls = time_calls(_call(field, structures), options.seconds)
            median = statistics.median(calls)
            record = {
                "model": field.engine.name,
                "structures": name,
                "systems": len(structures),
                "atoms": sum(len(atoms) for atoms in structures),
                "backend": backend,
                "device": field.engine.backend.device,
                "dtype": field.engine.backend.dtype,
                "threads": torch.get_num_threads(),
                "ms_per_call": 1e3 * median,
                "calls": len(calls),
                "ns_per_day": len(structures) * options.timestep * 86400e-6 / median,
            }
            if options.json:
                print(json.dumps(record), flush=True)
            rows.append(
                (
                    name,
                    str(record["atoms"]),
                    backend,
                    f"{record['ms_per_call']:.3g}",
                    str(record["calls"]),
                    f"{record['ns_per_day']:.3g}",
                )
            )
    if not options.json:
        print_table(rows)
        print(f"{options.model}, {options.dtype}, {options.device}, "
              f"{torch.get_num_threads()} threads, time step {options.timestep:g} fs")  # fmt: skip
    return 0


def time_calls(call: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of each of at least five calls, after three that are not counted."""
    for _ in range(3):
        call()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def standard_structures() -> list[tuple[str, list[Atoms]]]:
    """Water, aspirin, 64 aspirins and a periodic box of 64 water molecules; always the same."""
    from ase.build import molecule

    return [
        ("water", [molecule("H2O")]),
        ("aspirin", [aspirin()]),
        ("64 aspirins", [aspirin() for _ in range(64)]),
        ("water box", [water_box()]),
    ]


def aspirin() -> Atoms:
    """Aspirin, C9H8O4, by MMFF94."""
    from ase import Atoms

    return Atoms("C9O4H8", ASPIRIN)


def water_box(side: int = 4) -> Atoms:
    """side^3 water molecules, turned at random, on a cubic lattice at the density of water."""
    import numpy as np
    from ase import Atoms
    from ase.build import molecule

    spacing, generator = 3.105, np.random.default_rng(1)
    box = Atoms(cell=[side * spacing] * 3, pbc=True)
    for place in np.ndindex(side, side, side):
        water = molecule("H2O")
        axis = generator.normal(size=3)
        water.rotate(float(generator.uniform(0, 360)), axis, center="COP")
        water.translate(spacing * np.array(place) - water.positions.mean(0))
        box += water
    return box


def _call(field: Any, structures: list[Atoms]) -> Callable[[], None]:
    """A call of a force field on atoms that move by some 0.005 Å, back and forth."""
    import torch

    from nnpcalc.md.state import changed

    batch = field.batch(structures)
    generator = torch.Generator().manual_seed(1)
    step = 0.005 * torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    moved = [batch, changed(batch, positions=batch.positions + step.to(batch.positions.device))]

    def call() -> None:
        moved.reverse()
        # reading a number waits for what runs on a GPU
        float(field(moved[0]).energy[0])

    return call


def _set_threads(count: int) -> None:
    import numba
    import torch

    numba.set_num_threads(count)  # a ValueError says how many there are
    torch.set_num_threads(count)


#: Å; nine C, four O, eight H.
ASPIRIN = (
    (3.078, 1.183, -1.012),
    (2.032, 0.461, -0.216),
    (-0.057, -0.533, -0.393),
    (-0.103, -1.931, -0.410),
    (-1.153, -2.594, 0.223),
    (-2.156, -1.863, 0.858),
    (-2.117, -0.464, 0.857),
    (-1.067, 0.219, 0.223),
    (-1.034, 1.705, 0.193),
    (2.103, 0.246, 0.987),
    (1.007, 0.069, -1.071),
    (-0.229, 2.411, -0.387),
    (-2.036, 2.259, 0.903),
    (2.632, 2.043, -1.519),
    (3.528, 0.500, -1.736),
    (3.858, 1.546, -0.338),
    (0.678, -2.500, -0.906),
    (-1.189, -3.681, 0.223),
    (-2.974, -2.380, 1.354),
    (-2.916, 0.082, 1.353),
    (-1.883, 3.222, 0.811),
)
