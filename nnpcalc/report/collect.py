"""What a page shows of a trajectory, gathered in one pass over its frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms

#: What keeps a page below some ten megabytes: atoms in all pictures of a replica, replicas, and
#: points of a line. The page says what it leaves out.
MOST_ATOMS, MOST_REPLICAS, MOST_POINTS = 60_000, 8, 2000

Line = tuple[str, list[float], list[float]]


@dataclass
class Replica:
    """Numbers of all frames of one replica, and pictures of every `stride`-th."""

    name: int
    formula: str
    axis: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    stride: int = 1

    def add(self, atoms: Atoms, key: str | None, distances: Sequence[tuple[int, int]]) -> None:
        """Take in the next frame; `key` of `info` is its place on the axis."""
        number = len(self.axis)
        place = float(atoms.info.get(key, number))
        self.axis.append(place / 1000.0 if key == "time" else place)
        for name, value in _numbers(atoms, distances).items():
            self.values.setdefault(name, [math.nan] * number).append(value)
        for series in self.values.values():
            series += [math.nan] * (number + 1 - len(series))
        if number % self.stride == 0:
            self.pictures.append(_picture(atoms, self.axis[-1]))
        if len(self.pictures) > 2 and len(self.pictures) * len(atoms) > MOST_ATOMS:
            self.pictures, self.stride = self.pictures[::2], 2 * self.stride

    def line(self, name: str, relative: bool) -> Line | None:
        """Points of a plot, thinned evenly; None where nothing is known."""
        pairs = list(zip(self.axis, self.values.get(name, []), strict=False))
        pairs = [(x, y) for x, y in pairs if math.isfinite(y)]
        if not pairs:
            return None
        zero = pairs[0][1] if relative else 0.0
        pairs = pairs[:: math.ceil(len(pairs) / MOST_POINTS)]
        return f"replica {self.name}", [x for x, _ in pairs], [y - zero for _, y in pairs]


@dataclass(frozen=True)
class Collected:
    """What `collect` found: the replicas that are shown, and how many there are."""

    axis: str
    replicas: list[Replica]
    n_replicas: int

    @property
    def formula(self) -> str:
        """Formulas of the replicas, each once."""
        return ", ".join(dict.fromkeys(replica.formula for replica in self.replicas))

    @property
    def extent(self) -> str:
        """How many frames of how many replicas there are."""
        count = max(len(replica.axis) for replica in self.replicas)
        return (
            f"{count} of each of {self.n_replicas} replicas" if self.n_replicas > 1 else str(count)
        )

    @property
    def remarks(self) -> list[str]:
        """What is not shown."""
        lines = []
        if self.n_replicas > len(self.replicas):
            lines.append(f"{len(self.replicas)} of {self.n_replicas} replicas are shown.")
        stride = max(replica.stride for replica in self.replicas)
        if stride > 1:
            lines.append(f"The viewer has every {stride}th frame.")
        return lines

    def panels(self) -> list[tuple[str, str, list[Line]]]:
        """Name, unit and lines of each plot for which there are numbers."""
        names = dict.fromkeys(name for replica in self.replicas for name in replica.values)
        panels = []
        for name in names:
            relative = name in ("potential energy", "conserved energy")
            lines = [replica.line(name, relative) for replica in self.replicas]
            known = [line for line in lines if line is not None]
            if name == "volume" and all(min(ys) == max(ys) for _, _, ys in known):
                continue  # a fixed cell is no news
            if known:
                title = f"{name}, change since the first frame" if relative else name
                panels.append((title, _UNITS.get(name, "Å"), known))
        return panels

    def data(self) -> dict[str, Any]:
        """What the viewer reads: plain JSON."""
        return {
            "axis": self.axis,
            "replicas": [
                {"name": replica.name, "frames": replica.pictures} for replica in self.replicas
            ],
        }


_UNITS = {
    "uncertainty of the energy": "eV",
    "potential energy": "eV",
    "conserved energy": "eV",
    "temperature": "K",
    "largest force": "eV/Å",
    "volume": "Å³",
}


def collect(frames: Iterable[Atoms], distances: Sequence[tuple[int, int]]) -> Collected:
    """Go once through the frames.

    Raises:
        ValueError: there are none, or an atom of `distances` is missing.
    """
    replicas: dict[int, Replica] = {}
    seen: set[int] = set()
    key: str | None = None
    for atoms in frames:
        if not seen:
            key = next((name for name in ("time", "step") if name in atoms.info), None)
        name = int(atoms.info.get("replica", 0))
        seen.add(name)
        if name not in replicas and len(replicas) < MOST_REPLICAS:
            replicas[name] = Replica(name, atoms.get_chemical_formula())
        if name in replicas:
            replicas[name].add(atoms, key, distances)
    if not replicas:
        raise ValueError("there are no frames to report on")
    axis = {"time": "time / ps", "step": "step", None: "frame"}[key]
    return Collected(axis, list(replicas.values()), len(seen))


def _numbers(atoms: Atoms, distances: Sequence[tuple[int, int]]) -> dict[str, float]:
    """What is plotted of a frame; eV, K, eV/Å, Å^3 and Å."""
    known = {} if atoms.calc is None else atoms.calc.results
    numbers = {}
    if "energy" in known:
        numbers["potential energy"] = float(known["energy"])
    if "conserved_energy" in atoms.info:
        numbers["conserved energy"] = float(atoms.info["conserved_energy"])
    if "energy_uncertainty" in atoms.info:
        numbers["uncertainty of the energy"] = float(atoms.info["energy_uncertainty"])
    if "temperature" in atoms.info:
        numbers["temperature"] = float(atoms.info["temperature"])
    elif "forces" in known and len(atoms):
        numbers["largest force"] = float((known["forces"] ** 2).sum(1).max() ** 0.5)
    if atoms.pbc.all():
        numbers["volume"] = float(atoms.cell.volume)
    for i, j in distances:
        if not (0 <= i < len(atoms) and 0 <= j < len(atoms)):
            raise ValueError(f"the distance {i}, {j}: a frame has atoms 0 to {len(atoms) - 1} only")
        name = f"distance {atoms.symbols[i]}{i} to {atoms.symbols[j]}{j}"
        numbers[name] = float(atoms.get_distance(i, j, mic=bool(atoms.pbc.any())))
    return numbers


def _picture(atoms: Atoms, place: float) -> dict[str, Any]:
    """A frame for the viewer: XYZ text, and cell vectors if there is a periodic cell."""
    positions = atoms.get_positions()
    if not atoms.pbc.any() and len(atoms):
        positions = positions - positions.mean(0)  # a free molecule stays in view
    lines = [str(len(atoms)), ""]
    lines += [
        f"{symbol} {x:.3f} {y:.3f} {z:.3f}"
        for symbol, (x, y, z) in zip(atoms.symbols, positions.tolist(), strict=True)
    ]
    cell = atoms.cell.array.round(4).tolist() if atoms.pbc.any() else None
    return {"at": place, "xyz": "\n".join(lines) + "\n", "cell": cell}
