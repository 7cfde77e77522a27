"""The training loop: resumable at any step, averaged weights, one line a minute."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.kernels import forms
from nnpcalc.models import build_core
from nnpcalc.models.tensornet import TensorNet
from nnpcalc.potential import Potential
from nnpcalc.terms import ZBL, AtomicEnergies, StateEnergy
from nnpcalc.train.config import Config
from nnpcalc.train.data import (
    Baseline,
    Batch,
    Dataset,
    PairIndex,
    batches,
    collate,
    fit_baseline,
    index_pairs,
    read_corpus,
)
from nnpcalc.train.loss import loss
from nnpcalc.train.report import Errors


def build(config: Config, baseline: Baseline) -> Potential:
    """The potential of a configuration, with random weights."""
    options = dict(config.model.options)
    options.setdefault("elements", sorted(baseline.atomic_energies))
    core = build_core(config.model.architecture, options)
    terms: list[nn.Module] = [AtomicEnergies(baseline.atomic_energies)]
    if any(baseline.state):
        terms.append(StateEnergy(*baseline.state))
    if config.model.zbl_reach > 0.0:
        terms.append(ZBL(config.model.zbl_reach))
    return Potential(core, tuple(terms))


def accelerated(potential: Potential, n_knots: int, frozen: bool = False) -> Potential:
    """A potential with the same parameters on the fast path, where its core has one.

    Args:
        potential: the model.
        n_knots: size of the radial table; 0 leaves the model as it is.
        frozen: the parameters will not change, so that one table serves for good.
    """
    if n_knots and isinstance(potential.core, TensorNet) and potential.device.type == "cpu":
        from nnpcalc.kernels.tensornet import FusedTensorNet

        core = FusedTensorNet(potential.core, n_knots)
        if frozen:
            core.freeze()
        return Potential(core, tuple(potential.terms), potential.scale)
    return potential


def predict(potential: Potential, batch: Batch, create_graph: bool) -> dict[str, Tensor]:
    """Energies and forces of a training batch."""
    n, p = batch.n_atoms.shape[0], batch.pairs.shape[1]
    positions = batch.positions.to(potential.dtype)
    cell = positions.new_zeros(n, 3, 3)
    shifts = torch.zeros(p, 3, dtype=torch.int64, device=positions.device)
    return potential(
        batch.numbers, positions, cell, batch.system, batch.pairs, shifts, batch.charge,
        batch.multiplicity, None, True, False, create_graph,
    )  # fmt: skip


def learning_rate(step: int, total: int, config: Any) -> float:
    """Linear warm-up, then half a cosine down to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    low, high = config.final_learning_rate, config.learning_rate
    return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """One run of a configuration in one directory.

    The directory holds ``checkpoint.pt`` (everything needed to go on exactly where it stopped),
    ``best.pt`` (averaged weights with the lowest validation loss) and ``log.csv``.

    Args:
        config: the run.
        directory: where its files live; a checkpoint found there is continued.
        device: "cpu" or "cuda".
    """

    def __init__(self, config: Config, directory: str | Path, device: str = "cpu") -> None:
        self.config = config
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(device)
        train, self.validation = read_corpus(config.data.files)
        atom_peak = np.abs(train.forces).max(axis=1)
        peak = np.maximum.reduceat(atom_peak, train.offsets[:-1])
        self.train = train.take(np.flatnonzero(peak <= config.data.max_force))
        if config.training.validation_atoms:
            keep = np.cumsum(self.validation.n_atoms) <= config.training.validation_atoms
            self.validation = self.validation.take(np.flatnonzero(keep))
        self.baseline = fit_baseline(self.train)
        torch.manual_seed(config.training.seed)
        self.potential = build(config, self.baseline).to(torch.float32).to(self.device)
        self.fast = accelerated(self.potential, config.training.knots)
        self.parameters = [p for p in self.potential.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
        )
        self.repeats = np.ones(len(self.train), dtype=np.int64)
        for charge, times in config.data.repeats.items():
            self.repeats[self.train.charge == int(charge)] = times
        self.step = self.epoch = self.position = 0
        self.best = math.inf
        self.log: list[dict[str, float]] = []
        self.train_pairs = index_pairs(self.train, self.potential.cutoff)
        self.validation_pairs = index_pairs(self.validation, self.potential.cutoff)
        self.steps_per_epoch = len(self.epoch_batches(0))
        if (self.directory / "checkpoint.pt").exists():
            self.resume()

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: a function of seed and epoch alone."""
        generator = np.random.default_rng([self.config.training.seed, epoch])
        rows = np.repeat(np.arange(len(self.train)), self.repeats)
        order = generator.permutation(rows)
        limit = self.config.training.atoms_per_batch
        return list(batches(self.train.n_atoms, order, limit))

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.training.epochs

    def update(self, batch: Batch) -> float:
        """One optimiser step; returns the loss."""
        options = self.config.training
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, options)
        with forms.without(forms.PARAMETERS):
            output = predict(self.fast, batch, create_graph=True)
        progress = min(1.0, self.step / self.total_steps)
        energy_weight = options.energy_weight + progress * (
            options.final_energy_weight - options.energy_weight
        )
        value = loss(output, batch, energy_weight, options.force_weight)
        with forms.without(forms.GEOMETRY):
            gradients = torch.autograd.grad(value, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.parameters, options.gradient_clip)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"the gradient is not finite at step {self.step} (epoch {self.epoch}): lower the "
                f"learning rate, or look at the conformers {batch.rows.tolist()[:8]} ..."
            )
        self.optimiser.step()
        decay = min(options.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list[Tensor](self.parameters), 1.0 - decay)
        self.step += 1
        return float(value.detach())

    def run(self, report: Callable[[str], None] = print, until: float | None = None) -> None:
        """Train to the end of the last epoch, or until the clock (`time.time`) shows ``until``."""
        options = self.config.training
        report(
            f"{self.config.name}: {len(self.train)} conformers, {len(self.validation)} for "
            f"validation, {sum(p.numel() for p in self.parameters)} parameters, "
            f"{self.steps_per_epoch} steps per epoch, starting at step {self.step}"
        )
        saved = printed = time.monotonic()
        recent: list[float] = []
        structures = 0
        while self.epoch < options.epochs:
            plan = self.epoch_batches(self.epoch)
            while self.position < len(plan):
                rows = plan[self.position]
                batch = collate(self.train, self.train_pairs, rows).to(self.device)
                recent.append(self.update(batch))
                self.position += 1
                structures += rows.size
                now = time.monotonic()
                if now - printed > 60.0:
                    report(
                        f"epoch {self.epoch} step {self.step}/{self.total_steps} loss "
                        f"{np.mean(recent):.4f} {structures / (now - printed):.0f} structures/s"
                    )
                    printed, recent, structures = now, [], 0
                if now - saved > 60.0 * options.checkpoint_minutes:
                    self.save()
                    saved = now
                if until is not None and time.time() > until:
                    self.save()
                    report(f"stopped at step {self.step}: time is up; run again to continue")
                    return
            self.epoch += 1
            self.position = 0
            self.validate(report)
            self.save()
            saved = time.monotonic()

    def validate(self, report: Callable[[str], None]) -> None:
        """Measure the averaged weights and keep them if they are the best so far."""
        options = self.config.training
        with averaged(self.parameters, self.average):
            errors = evaluate(self.fast, self.validation, self.validation_pairs, self.device)
            energy = float(np.abs(errors.energy / self.validation.n_atoms).mean())
            force = float(np.abs(errors.forces).mean())
            value = options.final_energy_weight * energy + options.force_weight * force
            if value < self.best:
                self.best = value
                write_atomically(self.directory / "best.pt", self.weights())
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "energy_mae_meV_per_atom": 1000.0 * energy,
            "force_mae_meV_per_A": 1000.0 * force,
            "unix_time": time.time(),
        }
        self.log.append(row)
        with open(self.directory / "log.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows(self.log)
        report(
            f"epoch {self.epoch}: validation {1000 * energy:.2f} meV/atom, {1000 * force:.1f} meV/Å"
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
        """Write the checkpoint: whole or not at all."""
        content = {
            **self.weights(),
            "average": [t.cpu() for t in self.average],
            "optimiser": self.optimiser.state_dict(),
            "position": self.position,
            "best": self.best,
            "log": self.log,
        }
        write_atomically(self.directory / "checkpoint.pt", content)

    def resume(self) -> None:
        """Go back to the last checkpoint of the directory.

        Raises:
            ValueError: it belongs to another model.
        """
        path = self.directory / "checkpoint.pt"
        content = torch.load(path, map_location=self.device, weights_only=True)
        before, now = json.loads(content["config"])["model"], asdict(self.config)["model"]
        if before != json.loads(json.dumps(now)):
            raise ValueError(
                f"{path} was written by another model: {before}; train {now} in a new directory"
            )
        self.potential.load_state_dict(content["state"])
        self.average = [t.to(self.device) for t in content["average"]]
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, self.epoch = content["step"], content["epoch"]
        self.position, self.best, self.log = content["position"], content["best"], content["log"]


class averaged:
    """Context in which the parameters hold their running averages."""

    def __init__(self, parameters: list[nn.Parameter], average: list[Tensor]) -> None:
        self.pairs = list(zip(parameters, average, strict=True))

    def _swap(self) -> None:
        with torch.no_grad():
            for parameter, average in self.pairs:
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def evaluate(
    potential: Potential,
    dataset: Dataset,
    pairs: PairIndex,
    device: torch.device,
    max_atoms: int = 4000,
) -> Errors:
    """Errors of a potential on a data set."""
    energy: list[np.ndarray] = []
    forces: list[np.ndarray] = []
    for rows in batches(dataset.n_atoms, np.arange(len(dataset)), max_atoms):
        batch = collate(dataset, pairs, rows).to(device)
        output = predict(potential, batch, create_graph=False)
        energy.append((output["energy"].detach() - batch.energy).cpu().numpy())
        forces.append((output["forces"].detach() - batch.forces).cpu().numpy())
    return Errors(np.concatenate(energy), np.concatenate(forces))


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Save by temporary file, fsync and rename, so that a kill leaves the old file or the new."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
