"""Learning rate over a run, and when to stop it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nnpcalc.train.config import TrainingConfig


@dataclass(frozen=True)
class Progress:
    """Where a run stands; with the weights and the optimiser's state, all it needs to go on.

    Attributes:
        step: optimiser steps done.
        epoch: epochs finished.
        position: batches done of the current epoch.
        loss: sum of their losses.
        best: lowest validation loss so far.
        stale: epochs since then.
        waited: epochs since then or since the rate was lowered, whichever is later.
        factor: what the plateau schedule multiplies the learning rate by.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    loss: float = 0.0
    best: float = math.inf
    stale: int = 0
    waited: int = 0
    factor: float = 1.0

    def after_step(self, loss: float) -> Progress:
        """One more batch with this loss."""
        return replace(self, step=self.step + 1, position=self.position + 1, loss=self.loss + loss)

    def after_epoch(self, validation_loss: float, options: TrainingConfig) -> Progress:
        """One more epoch, if there are any, with this validation loss.

        Here the plateau schedule lowers the rate.
        """
        better = validation_loss < self.best
        waited = 0 if better else self.waited + 1
        lower = options.schedule == "plateau" and waited >= options.plateau_patience
        return replace(
            self,
            epoch=min(self.epoch + 1, options.epochs),  # 0 of 0: only validated
            position=0,
            loss=0.0,
            best=min(validation_loss, self.best),
            stale=0 if better else self.stale + 1,
            waited=0 if lower else waited,
            factor=self.factor * (options.plateau_factor if lower else 1.0),
        )

    def finished(self, options: TrainingConfig) -> bool:
        """All epochs are done, or the validation loss has not improved for ``patience`` epochs."""
        return self.epoch >= options.epochs or bool(
            options.patience and self.stale >= options.patience
        )


def learning_rate(progress: Progress, total_steps: int, options: TrainingConfig) -> float:
    """Linear warm-up; then half a cosine down to the final rate, or the plateau schedule's rate."""
    low, high, step = options.final_learning_rate, options.learning_rate, progress.step
    if step < options.warmup_steps:
        return high * progress.factor * (step + 1) / options.warmup_steps
    if options.schedule == "plateau":
        return max(low, high * progress.factor)
    done = (step - options.warmup_steps) / max(1, total_steps - options.warmup_steps)
    return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * min(1.0, done)))


def energy_weight(progress: Progress, total_steps: int, options: TrainingConfig) -> float:
    """The weight on energies, which moves to its final value in proportion to the steps done."""
    done = min(1.0, progress.step / total_steps)
    return options.energy_weight + done * (options.final_energy_weight - options.energy_weight)
