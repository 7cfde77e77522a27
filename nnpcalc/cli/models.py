"""`nnpcalc models`: what is installed, and the card of one."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from nnpcalc.cli.common import print_table


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("models", help="list the models, or print the card of one")
    parser.add_argument("name", nargs="?", help="name or path of a model")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table of the models, or one card as JSON."""
    from nnpcalc.state import element_symbol
    from nnpcalc.weights import list_models, load_card

    if options.name is not None:
        card = load_card(options.name)
        golden = card.pop("golden", [])
        print(json.dumps({**card, "golden": f"{len(golden)} structures"}, indent=2))
        return 0
    rows = [("name", "architecture", "cutoff/Å", "charges", "multiplicities", "elements")]
    for name in list_models():
        card = load_card(name)
        rows.append(
            (
                name,
                card["architecture"],
                f"{card['cutoff']:g}",
                _span(card["charges"]),
                _span(card["multiplicities"]),
                " ".join(element_symbol(number) for number in sorted(card["elements"])),
            )
        )
    print_table(rows)
    if len(rows) == 1:
        print("no models are installed", file=sys.stderr)
    return 0


def _span(values: list[int]) -> str:
    ordered = sorted(values)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}..{ordered[-1]}"
    return ",".join(map(str, ordered))
