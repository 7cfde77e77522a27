"""What `nnpcalc md` says while it runs: a bar, plain lines, or JSON lines; and its CSV file."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from nnpcalc.md import Frame, Incident

#: Seconds between two lines where no bar can be drawn, and between two pictures of the bar.
LINE_SECONDS, BAR_SECONDS = 10.0, 0.1

COLUMNS = ("step", "time_fs", "replica", "potential_energy", "kinetic_energy", "temperature",
           "conserved_energy")  # fmt: skip


def display_mode(stdout: TextIO, wants_json: bool, environment: Mapping[str, str]) -> str:
    """How to show progress: "json" in a pipe or on demand, else "bar", or "lines" if TERM is dumb.

    Args:
        stdout: where results go.
        wants_json: the user asked for JSON.
        environment: of the process; TERM is looked at.
    """
    if wants_json or not stdout.isatty():
        return "json"
    return "lines" if environment.get("TERM", "dumb") in ("dumb", "") else "bar"


def coloured(environment: Mapping[str, str]) -> bool:
    """Whether a terminal may be sent colours: not if NO_COLOR is set (https://no-color.org)."""
    return not environment.get("NO_COLOR")


class Progress:
    """Called with every frame of a run.

    Args:
        mode: of `display_mode`.
        steps: of the whole run.
        timestep: fs.
        out: where it is written.
        colours: of the bar.
    """

    def __init__(
        self, mode: str, steps: int, timestep: float, out: TextIO, colours: bool = False
    ) -> None:
        self.mode, self.steps, self.timestep = mode, steps, timestep
        self.out, self.colours = out, colours
        self._begin: tuple[int, float] | None = None
        self._shown = -math.inf
        self._conserved: dict[int, float] = {}
        self._bar_is_up = False

    def __call__(self, frame: Frame) -> None:
        """Show a frame."""
        record = self.record(frame)
        if self.mode == "json":
            print(json.dumps(record), file=self.out, flush=True)
            return
        now = time.monotonic()
        pause = BAR_SECONDS if self.mode == "bar" else LINE_SECONDS
        if now - self._shown < pause and record["step"] + 1 < self.steps:
            return
        self._shown = now
        if self.mode == "bar":
            width = shutil.get_terminal_size().columns - 1
            self.out.write("\r" + bar(record, self.steps, width, self.colours) + "\x1b[K")
            self.out.flush()
            self._bar_is_up = True
        else:
            done = f"step {record['step']}/{self.steps}  "
            print(done + "  ".join(figures(record)), file=self.out, flush=True)

    def record(self, frame: Frame) -> dict[str, Any]:
        """What is known at a frame, as JSON; lists have an entry per replica that still runs.

        Energies in eV, temperatures in K, time_fs in fs, time_left_s in s; drift is the mean change
        of the conserved energy since the first frame of this process in meV per atom. A committee
        adds energy_uncertainty, eV, and max_uncertainty, the largest of a force, eV/Å.
        """
        step, state, now = frame.state.step, frame.state, time.monotonic()
        if self._begin is None:
            self._begin = (step, now)
        done, seconds = step - self._begin[0], now - self._begin[1]
        rate = done / seconds if done and seconds > 0 else None
        names, conserved = state.replica.tolist(), frame.conserved.tolist()
        drifts = [
            1e3 * (now_ - self._conserved.setdefault(name, now_)) / atoms
            for name, now_, atoms in zip(names, conserved, state.counts.tolist(), strict=True)
        ]
        mean_drift = sum(drifts) / len(drifts)
        return {
            "step": step,
            "time_fs": frame.time,
            "replica": names,
            "potential_energy": state.energy.tolist(),
            "kinetic_energy": frame.kinetic.tolist(),
            "temperature": frame.temperature.tolist(),
            "conserved_energy": [value if math.isfinite(value) else None for value in conserved],
            **frame.uncertainties,
            "drift_meV_per_atom": mean_drift if math.isfinite(mean_drift) else None,
            "steps_per_second": rate,
            "ns_per_day": None if rate is None else ns_per_day(rate, self.timestep),
            "time_left_s": None if rate is None else (self.steps - step) / rate,
        }

    def say(self, text: str) -> None:
        """Print a line on stderr without tearing the bar."""
        self.close()
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar_is_up:
            print(file=self.out, flush=True)
            self._bar_is_up = False


def ns_per_day(steps_per_second: float, timestep: float) -> float:
    """Simulated nanoseconds a day of one replica, at a time step in fs."""
    return steps_per_second * timestep * 86400e-6


def figures(record: dict[str, Any]) -> list[str]:
    """The numbers of a record as short texts, the most wanted first."""
    temperatures, replicas = record["temperature"], len(record["replica"])
    texts = []
    if record["time_left_s"] is not None:
        texts.append(f"{clock(record['time_left_s'])} left")
        texts.append(f"{record['steps_per_second']:.4g} steps/s")
        times = f" x {replicas}" if replicas > 1 else ""
        texts.append(f"{record['ns_per_day']:.3g}{times} ns/day")
    texts.append(f"{sum(temperatures) / replicas:.0f} K")
    if record["drift_meV_per_atom"] is not None:
        texts.append(f"drift {record['drift_meV_per_atom']:+.3g} meV/atom")
    return texts


def bar(record: dict[str, Any], steps: int, width: int, colours: bool) -> str:
    """One line of at most `width` columns: a bar, and as many of the numbers as have room."""
    share = min(1.0, record["step"] / steps) if steps else 1.0
    head, tail = f"{share:4.0%} ", f" {record['step']}/{steps}"
    room = width - len(head) - len(tail)
    for text in figures(record):
        if len(text) + 2 + 12 > room:
            break
        tail, room = f"{tail}  {text}", room - len(text) - 2
    length = max(0, min(room - 2, 30))
    full = round(share * length)
    done, left = "#" * full, "." * (length - full)
    if colours:
        done = f"\x1b[32m{done}\x1b[0m"
    drawn = f"[{done}{left}]" if length else ""
    return f"{head}{drawn}{tail}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, 2:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def incident_record(incident: Incident) -> dict[str, Any]:
    """An incident as JSON."""
    return {
        "replica": incident.replica,
        "step": incident.step,
        "reason": incident.reason,
        "atoms": list(incident.atoms),
    }


class CSVLog:
    """A CSV file with a row per frame and replica, energies in eV, time in fs.

    Args:
        path: of the file; its directory exists.
        last_step: rows of later steps, of a run that was killed behind its checkpoint, are dropped;
            None begins a new file.
    """

    def __init__(self, path: Path, last_step: int | None) -> None:
        kept: list[list[str]] = []
        if last_step is not None and path.exists():
            kept = [row for row in _rows(path) if int(row[0]) <= last_step]
        self._file = open(path, "w", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._write([COLUMNS, *kept])

    def __call__(self, frame: Frame) -> None:
        """Append a frame."""
        state = frame.state
        columns = zip(
            state.replica.tolist(), state.energy.tolist(), frame.kinetic.tolist(),
            frame.temperature.tolist(), frame.conserved.tolist(), strict=True,
        )  # fmt: skip
        self._write([[state.step, frame.time, *row] for row in columns])

    def _write(self, rows: Iterable[Iterable[Any]]) -> None:
        try:
            self._writer.writerows(rows)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), self._file.name) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(path: Path) -> list[list[str]]:
    """Complete rows of a log, without the heading.

    Raises:
        ValueError: the file is not a log.
    """
    with open(path, newline="") as file:
        heading = next(csv.reader([file.readline()]), None)
        if heading is None or tuple(heading) != COLUMNS:
            raise ValueError(f"{path} is no log of nnpcalc md: take another name for --log")
        lines = [line for line in file if line.endswith("\n")]
    return [row for row in csv.reader(lines) if len(row) == len(COLUMNS)]
