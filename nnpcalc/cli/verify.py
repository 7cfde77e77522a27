"""`nnpcalc verify`: whether a model gives here the numbers that its card says."""

from __future__ import annotations

import argparse
from typing import Any

from nnpcalc.cli.common import add_machine, print_table, signed


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("verify", help="recompute a model's golden values here")
    parser.add_argument("name", help="name or path of a model")
    parser.add_argument("--backend", default="eager", help="eager (default), fused or torchscript")
    parser.add_argument("--trust", action="store_true", help="run TorchScript that is not shipped")
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the differences; 1 if there are some."""
    from nnpcalc.verify import verify

    checks = verify(
        options.name,
        device=options.device,
        dtype=options.dtype,
        backend=options.backend,
        trust=options.trust,
    )
    rows = [("molecule", "charge", "mult.", "dE/meV", "max |dF|/(meV/Å)", "")]
    for check in checks:
        rows.append(
            (
                check.label,
                signed(check.charge),
                str(check.multiplicity),
                f"{1e3 * check.energy_difference:.1e}",
                f"{1e3 * check.force_difference:.1e}",
                "ok" if check.passed else "DIFFERS",
            )
        )
    print_table(rows)
    failed = sum(not check.passed for check in checks)
    print(
        f"{options.name}: {len(checks) - failed} of {len(checks)} golden values reproduced "
        f"({options.dtype}, {options.backend}, {options.device})"
    )
    return 1 if failed else 0
