"""`write_report`: a trajectory as one HTML page that needs no network and no installed program.

The page holds the trajectory in 3-D, plots of energy, temperature and watched distances as SVG, and
the viewer library 3Dmol.js, which `nnpcalc.report.viewer` fetches once and keeps.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from nnpcalc import __version__
from nnpcalc.report.collect import collect
from nnpcalc.report.svg import Panel, draw
from nnpcalc.report.viewer import load_viewer

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["write_report"]

HERE = Path(__file__).parent


def write_report(
    path: str | os.PathLike[str],
    frames: Iterable[Atoms],
    *,
    title: str,
    distances: Sequence[tuple[int, int]] = (),
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write a page about a trajectory: of dynamics, of an optimisation, or any list of structures.

    Args:
        path: of the page; what was there is replaced.
        frames: structures in their order. Of `info` are read step, time (fs), replica (0 if there
            is none), temperature (K) and conserved_energy (eV); energy and forces of the results.
        title: of the page.
        distances: pairs of atoms, from 0, whose distance in Å is plotted.
        facts: names and values for the table at the top.
        notes: lines under the table.

    Raises:
        ValueError: there are no frames, or an atom of `distances` that a frame does not have.
        OSError: the page cannot be written, or there is no viewer and no network to fetch it.
    """
    viewer, licence = load_viewer()
    found = collect(frames, distances)
    rows = {
        "structure": found.formula,
        "frames": found.extent,
        **(facts or {}),
        "written by": f"nnpcalc {__version__}",
    }
    plots = [draw(Panel(name, unit, found.axis, lines)) for name, unit, lines in found.panels()]
    page = Template(_text("page.html")).substitute(
        title=html.escape(title),
        style=_text("page.css"),
        facts="".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
        ),
        notes="".join(f"<li>{html.escape(line)}</li>" for line in (*notes, *found.remarks)),
        plots="".join(f"<figure>{plot}</figure>" for plot in plots),
        data=embedded(found.data()),
        viewer=viewer,
        script=_text("page.js"),
        licence=html.escape(licence),
    )
    Path(path).write_text(page, encoding="utf-8")


def embedded(data: Any) -> str:
    """JSON that is safe between script tags: without "<", nothing in it ends the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
