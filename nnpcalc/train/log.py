"""What a run says while it goes: a bar or a line a minute, a CSV file, TensorBoard."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Ticker:
    """A line a minute through ``report``.

    Args:
        report: takes one line.
        total: steps of the run.
        start: steps done before.
    """

    def __init__(self, report: Callable[[str], None], total: int, start: int) -> None:
        self.report = report
        self.total, self.start = total, start
        self.printed = time.monotonic()
        self.losses: list[float] = []
        self.structures = 0

    def tick(self, epoch: int, step: int, loss: float, structures: int) -> None:
        """One more step is done."""
        self.losses.append(loss)
        self.structures += structures
        elapsed = time.monotonic() - self.printed
        if elapsed > 60.0:
            self.report(
                f"epoch {epoch} step {step}/{self.total} loss "
                f"{sum(self.losses) / len(self.losses):.4f} {self.structures / elapsed:.0f} "
                "structures/s"
            )
            self.printed, self.losses, self.structures = time.monotonic(), [], 0

    def say(self, line: str) -> None:
        """Report something else."""
        self.report(line)

    def close(self) -> None:
        """The run ends."""


class Bar(Ticker):
    """A progress bar with the running mean of the loss; needs tqdm."""

    def __init__(self, report: Callable[[str], None], total: int, start: int) -> None:
        super().__init__(report, total, start)
        from tqdm import tqdm

        self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)
        self.mean: float | None = None

    def tick(self, epoch: int, step: int, loss: float, structures: int) -> None:
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.bar.set_postfix_str(f"epoch {epoch} loss {self.mean:.4f}", refresh=False)
        self.bar.update(1)

    def say(self, line: str) -> None:
        self.bar.clear()
        self.report(line)
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def ticker(report: Callable[[str], None], total: int, start: int, bar: bool) -> Ticker:
    """A bar if wanted and tqdm is installed, else lines."""
    if bar:
        try:
            return Bar(report, total, start)
        except ImportError:
            pass
    return Ticker(report, total, start)


class Events:
    """Scalars for TensorBoard; does nothing unless asked for.

    Args:
        directory: of the event file.
        wanted: write one.
        step: steps done before; what an earlier, killed process wrote beyond them is hidden.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, directory: Path, wanted: bool, step: int) -> None:
        self.writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "[training] tensorboard = true needs it: pip install 'nnpcalc[tensorboard]'"
            ) from error
        self.writer = SummaryWriter(str(directory), purge_step=step)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write values of one step."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self.writer.close()


def write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Write the rows with the columns of the last of them."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
