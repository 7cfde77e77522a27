"""SIGTERM and SIGINT end a run between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A signal stopped the run; its state is in the checkpoint, if there is one.

    A SystemExit: a script that does not catch it ends with the status that the shell expects, 143
    for SIGTERM and 130 for SIGINT.
    """

    def __init__(self, number: int, step: int, checkpoint: Path | None) -> None:
        super().__init__(128 + number)
        self.step, self.checkpoint = step, checkpoint
        name = signal.Signals(number).name
        saved = "no checkpoint was asked for" if checkpoint is None else f"see {checkpoint}"
        self.text = f"stopped by {name} after step {step}; {saved}"

    def __str__(self) -> str:
        return self.text


class StopSignals:
    """Within it, the first signal is noted and the second one does what it always did.

    Outside of the main thread Python cannot handle signals, and nothing changes.

    Attributes:
        received: number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
