"""The training loop: resumable at any step, averaged weights, one process or several."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.kernels import forms
from nnpcalc.potential import Potential
from nnpcalc.state import element_symbol
from nnpcalc.train.build import (
    accelerated,
    build,
    build_from,
    check_given_charges,
    check_states,
    initial_baseline,
    load_initial,
)
from nnpcalc.train.checkpoint import averaged, fingerprint, read_checkpoint, write_atomically
from nnpcalc.train.config import Config
from nnpcalc.train.data import Baseline, Dataset, batches, collate, fit_baseline, index_pairs
from nnpcalc.train.log import Events, ticker, write_csv
from nnpcalc.train.loss import Totals, Weights, loss
from nnpcalc.train.optimiser import optimiser
from nnpcalc.train.precision import check_precision, matrix_products
from nnpcalc.train.predict import ALONE, Errors, evaluate, predict
from nnpcalc.train.processes import Processes
from nnpcalc.train.readers import read_dataset
from nnpcalc.train.schedule import Progress, energy_weight, learning_rate
from nnpcalc.weights import check_model_card

__all__ = ["Trainer", "accelerated", "build", "evaluate", "predict"]


def read_data(config: Config) -> tuple[Dataset, Dataset, int]:
    """The conformers to train on, to validate on, and how many `max_force` has left out.

    Raises:
        ValueError: see `read_dataset`; or a set is empty.
    """
    data = config.data
    train, validation = read_dataset(
        data.files,
        labels=data.labels,
        validation_fraction=data.validation_fraction,
        split_by=data.split_by,
        seed=data.seed,
    )
    if not len(train) or not len(validation):
        raise ValueError(
            f"{len(train)} conformers for training and {len(validation)} for validation in "
            f"{', '.join(data.files)}: neither set may be empty; files without a split are split "
            "by [data] validation_fraction"
        )
    peak = np.maximum.reduceat(np.abs(train.forces).max(axis=1), train.offsets[:-1])
    if peak.min() > data.max_force:
        raise ValueError(f"every training conformer has a force above {data.max_force} eV/Å")
    left_out = int((peak > data.max_force).sum())
    train = train.take(np.flatnonzero(peak <= data.max_force))
    if config.training.validation_atoms:
        keep = np.cumsum(validation.n_atoms) <= config.training.validation_atoms
        keep[0] = True
        validation = validation.take(np.flatnonzero(keep))
    return train, validation, left_out


def check_elements(potential: Potential, *datasets: Dataset) -> None:
    """Refuse elements that a network does not have.

    Raises:
        ValueError: names them.
    """
    numbers = np.unique(np.concatenate([dataset.numbers for dataset in datasets]))
    unknown = sorted(set(numbers.tolist()) - set(potential.elements))
    if unknown:
        raise ValueError(
            f"the network has no {', '.join(map(element_symbol, unknown))}, which the data hold: "
            "its elements are those of [model] elements, or else of the training conformers. Add "
            "training conformers with it, or leave those of validation out"
        )


class Trainer:
    """One run of a configuration in one directory.

    The directory holds ``checkpoint.pt`` (everything needed to go on exactly where it stopped),
    ``best.pt`` (averaged weights with the lowest validation loss) and ``log.csv``.

    Args:
        config: the run.
        directory: where its files live; a checkpoint found there is continued.
        device: "cpu", "cuda" or "cuda:1".
        processes: this process among those that train together (`nnpcalc.train.processes`).

    Raises:
        ValueError: the data, the device or the checkpoint does not fit the configuration.
    """

    def __init__(
        self,
        config: Config,
        directory: str | Path,
        device: str = "cpu",
        processes: Processes = ALONE,
    ) -> None:
        options = config.training
        self.processes = processes
        self.directory = Path(directory)
        self.device = torch.device(device)
        check_precision(options.precision, self.device)
        initial = None
        if options.initial:
            config, initial = load_initial(config)
        self.config = config
        self.train, self.validation, self.left_out = read_data(config)
        if options.charge_weight and not np.isfinite(self.train.partial_charges).any():
            raise ValueError("[training] charge_weight is set, but no atom has a partial charge")
        if options.shift_weight and not self.train.soft_modes.any():
            raise ValueError(
                "[training] shift_weight is set, but no conformer has soft modes: "
                "examples/datasets/soft_modes.py adds them to npz files"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] | None = None
        self.changed: list[str] = []
        self.data, self.validated_on = fingerprint(self.train), fingerprint(self.validation)
        path = self.directory / "checkpoint.pt"
        if path.exists():
            content, self.changed = read_checkpoint(path, config, self.data, self.device)
            self.baseline = Baseline(**content["baseline"])
        elif initial is not None:
            check_given_charges(initial.core, self.train)
            self.baseline = initial_baseline(initial, config, self.train)
        else:
            self.baseline = fit_baseline(self.train, state=config.model.state_energy)
        torch.manual_seed(options.seed)
        if initial is not None:
            potential = build_from(initial, config, self.baseline)
        else:
            potential = build(config, self.baseline)
        check_elements(potential, self.train, self.validation)
        check_states(potential.core, self.train)
        check_states(potential.core, self.validation)
        self.potential = potential.to(torch.float32).to(self.device)
        self.fast = accelerated(self.potential, options.knots)
        if options.precision == "bfloat16" and self.fast is not self.potential:
            raise ValueError("precision = 'bfloat16' needs the eager network: set knots = 0")
        self.parameters = [p for p in self.potential.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = optimiser(self.potential, options)
        check_model_card(self.potential, config.name, self.card())
        self.repeats = np.ones(len(self.train), dtype=np.int64)
        for charge, times in config.data.repeats.items():
            chosen = self.train.charge == int(charge)
            if not chosen.any():
                raise ValueError(f"[data] repeats: no training conformer has charge {charge}")
            self.repeats[chosen] = times
        if not self.repeats.any():
            raise ValueError("[data] repeats leave no training conformer")
        self.progress = Progress()
        self.log: list[dict[str, float]] = []
        self.train_pairs = index_pairs(self.train, self.potential.cutoff)
        self.validation_pairs = index_pairs(self.validation, self.potential.cutoff)
        self.steps_per_epoch = len(self.epoch_batches(0))
        if content is not None:
            self._resume(content)

    def card(self) -> dict[str, Any]:
        """The part of the model's card that is known before training."""
        return {
            **self.config.card,
            "charges": sorted({int(q) for q in self.train.charge}),
            "multiplicities": sorted({int(m) for m in self.train.multiplicity}),
        }

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.progress.step

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.progress.epoch

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.config.training.epochs

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: a function of seed and epoch alone."""
        options = self.config.training
        generator = np.random.default_rng([options.seed, epoch])
        order = generator.permutation(np.repeat(np.arange(len(self.train)), self.repeats))
        if options.pairs_per_batch:
            sizes = np.diff(self.train_pairs.offsets)
            return list(batches(sizes, order, options.pairs_per_batch))
        return list(batches(self.train.n_atoms, order, options.atoms_per_batch))

    def update(self, rows: np.ndarray, stop: bool = False) -> tuple[float, bool]:
        """One optimiser step of all processes on the conformers ``rows``.

        Returns:
            The loss, and whether any process wants to stop.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        options = self.config.training
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.progress, self.total_steps, options)
        gradients, value, stop = self._sum(*self._gradients(rows), stop)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        limit = options.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"the gradient is not finite at step {self.step} (epoch {self.epoch}): lower the "
                f"learning rate, or look at the conformers {rows.tolist()[:8]} ..."
            )
        self.optimiser.step()
        decay = min(options.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list[Tensor](self.parameters), 1.0 - decay)
        self.progress = self.progress.after_step(value)
        return value, stop

    def _gradients(self, rows: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """This process's part of the loss of a batch, and its gradient."""
        options = self.config.training
        mine = rows[self.processes.share(self.train.n_atoms[rows])]
        if not mine.size:
            return [torch.zeros_like(p) for p in self.parameters], torch.zeros(
                (), device=self.device
            )
        labelled = 0
        if options.charge_weight:
            whole = self.train.take(rows).partial_charges
            labelled = int(np.isfinite(whole).sum())
        totals = Totals(rows.size, int(self.train.n_atoms[rows].sum()), labelled)
        weights = Weights(
            energy_weight(self.progress, self.total_steps, options),
            options.force_weight,
            options.charge_weight,
            options.shift_weight,
        )
        batch = collate(self.train, self.train_pairs, mine).to(self.device)
        with matrix_products(options.precision):
            with forms.without(forms.PARAMETERS):
                output = predict(self.fast, batch, create_graph=True)
            value = loss(output, batch, weights, totals)
            with forms.without(forms.GEOMETRY):
                gradients = torch.autograd.grad(value, self.parameters, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.parameters, gradients, strict=True)
        ], value.detach()

    def _sum(
        self, gradients: list[Tensor], value: Tensor, stop: bool
    ) -> tuple[list[Tensor], float, bool]:
        """Gradients, loss and the wish to stop, over all processes, in one message."""
        if self.processes.size == 1:
            return gradients, float(value), stop
        extra = torch.stack([value.to(torch.float32), torch.full_like(value, float(stop))])
        flat = torch.cat([*(g.reshape(-1) for g in gradients), extra])
        self.processes.sum(flat)
        parts = flat[:-2].split([p.numel() for p in self.parameters])
        summed = [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
        return summed, float(flat[-2]), bool(flat[-1] > 0.0)

    def run(
        self,
        report: Callable[[str], None] = print,
        until: float | None = None,
        bar: bool = False,
    ) -> None:
        """Train to the end, or until the clock (`time.time`) shows ``until``.

        Args:
            report: takes lines; those of one process of several.
            until: stop, with a checkpoint, after the first step that ends later.
            bar: show a progress bar on standard error, if tqdm is installed.
        """
        options = self.config.training
        main = self.processes.rank == 0
        lines = ticker(report if main else _silent, self.total_steps, self.step, bar and main)
        events = Events(self.directory, options.tensorboard and main, self.step)
        lines.say(
            f"{self.config.name}: {len(self.train)} conformers, {len(self.validation)} for "
            f"validation, {sum(p.numel() for p in self.parameters)} parameters, "
            f"{self.steps_per_epoch} steps per epoch, starting at step {self.step}"
        )
        if self.left_out:
            lines.say(
                f"{self.left_out} of {self.left_out + len(self.train)} training conformers left "
                f"out: a force component above max_force = {self.config.data.max_force:g} eV/Å"
            )
        if self.changed:
            lines.say(f"options changed since the checkpoint: {', '.join(self.changed)}")
        saved = time.monotonic()
        try:
            if not (options.epochs or self.log):  # nothing to train: the starting point is it
                lines.say(self.validate())
                self.save()
            while not self.progress.finished(options):
                plan = self.epoch_batches(self.epoch)
                while self.progress.position < len(plan):
                    rows = plan[self.progress.position]
                    late = until is not None and time.time() > until
                    value, stop = self.update(rows, late)
                    lines.tick(self.epoch, self.step, value, rows.size)
                    events.add(self.step, {"loss/train": value, "learning_rate": self.rate})
                    if stop or time.monotonic() - saved > 60.0 * options.checkpoint_minutes:
                        self.save()
                        saved = time.monotonic()
                    if stop:
                        lines.say(f"stopped at step {self.step}: time is up; run again to go on")
                        return
                lines.say(self.validate())
                measured = {k: v for k, v in self.log[-1].items() if "_mae_" in k}
                events.add(self.step, {f"validation/{k}": v for k, v in measured.items()})
                self.save()
                saved = time.monotonic()
            if self.epoch < options.epochs:
                lines.say(
                    f"stopped after epoch {self.epoch}: no better validation loss for "
                    f"{self.progress.stale} epochs"
                )
        finally:
            lines.close()
            events.close()

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def validation_loss(self, errors: Errors) -> tuple[float, dict[str, float]]:
        """What the best weights are chosen by, and its parts as columns of the log."""
        options = self.config.training
        energy = float(np.abs(errors.energy / self.validation.n_atoms).mean())
        force = float(np.abs(errors.forces).mean())
        value = options.final_energy_weight * energy + options.force_weight * force
        columns = {
            "energy_mae_meV_per_atom": 1000.0 * energy,
            "force_mae_meV_per_A": 1000.0 * force,
        }
        if options.charge_weight and errors.charge_mae is not None:
            value += options.charge_weight * errors.charge_mae
            columns["charge_mae_me"] = 1000.0 * errors.charge_mae
        return value, columns

    def validate(self) -> str:
        """End an epoch: measure the averaged weights, keep the best; returns a line about it."""
        with averaged(self.parameters, self.average):
            errors = evaluate(
                self.fast, self.validation, self.validation_pairs, self.device,
                processes=self.processes,
            )  # fmt: skip
            value, columns = self.validation_loss(errors)
            better = value < self.progress.best
            steps = self.progress.position
            train_loss = self.progress.loss / steps if steps else math.nan
            self.progress = self.progress.after_epoch(value, self.config.training)
            if better and self.processes.rank == 0:
                write_atomically(self.directory / "best.pt", self.weights())
        self.log.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "learning_rate": self.rate,
                "train_loss": train_loss,
                **columns,
                "unix_time": time.time(),
            }
        )
        if self.processes.rank == 0:
            write_csv(self.directory / "log.csv", self.log)
        trained = f"loss {train_loss:.4f}, " if steps else ""
        return (
            f"epoch {self.epoch}: {trained}validation "
            f"{columns['energy_mae_meV_per_atom']:.2f} meV/atom, "
            f"{columns['force_mae_meV_per_A']:.1f} meV/Å"
        )

    def weights(self) -> dict[str, Any]:
        """Current parameters with what is needed to rebuild the potential."""
        return {
            "state": {k: v.detach().cpu().clone() for k, v in self.potential.state_dict().items()},
            "baseline": asdict(self.baseline),
            "config": json.dumps(asdict(self.config)),
            "step": self.step,
            "epoch": self.epoch,
        }

    def save(self) -> None:
        """Write the checkpoint: whole or not at all, by process 0."""
        if self.processes.rank:
            return
        content = {
            **self.weights(),
            **asdict(self.progress),
            "average": [t.cpu() for t in self.average],
            "optimiser": self.optimiser.state_dict(),
            "log": self.log,
            "data": self.data,
            "validated_on": self.validated_on,
        }
        write_atomically(self.directory / "checkpoint.pt", content)

    def _resume(self, content: dict[str, Any]) -> None:
        self.potential.load_state_dict(content["state"])
        self.average = [t.to(self.device) for t in content["average"]]
        self.optimiser.load_state_dict(content["optimiser"])
        for group in self.optimiser.param_groups:
            group["weight_decay"] = self.config.training.weight_decay
        stored = {f.name: content[f.name] for f in fields(Progress) if f.name in content}
        self.progress, self.log = Progress(**stored), content["log"]
        if content.get("validated_on", self.validated_on) != self.validated_on:
            self.changed.append("validation data: the best loss so far no longer counts")
            self.progress = replace(self.progress, best=math.inf, stale=0, waited=0)


def _silent(_: str) -> None:
    pass
