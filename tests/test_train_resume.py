"""A run that was stopped or killed goes on as if nothing had happened."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from nnpcalc.train import Trainer
from train_corpus import comparable, settings, silent, write_corpus, write_settings

PLATEAU = {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.5, "warmup_steps": 3}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("resume")
    write_corpus(directory)
    return directory


def assert_same(one, other):
    """Bitwise: weights, averages, and every loss and error of the log."""
    assert comparable(one.log) == comparable(other.log)
    for a, b in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.average, other.average, strict=True):
        assert torch.equal(a, b)
    assert one.progress == other.progress


@pytest.mark.parametrize(
    "options", [{"knots": 0}, {"knots": 128}, {"optimizer": "muon"}], ids=["eager", "fused", "muon"]
)
def test_resume_is_bitwise(workplace, tmp_path, options):
    config = settings(workplace, **options)
    whole = Trainer(config, tmp_path / "whole")
    whole.run(silent)
    part = Trainer(config, tmp_path / "part")
    plan = part.epoch_batches(0)
    for rows in plan[:3]:
        part.update(rows)
    part.save()
    part.update(plan[3])  # lost, as if killed
    resumed = Trainer(config, tmp_path / "part")
    assert (resumed.step, resumed.progress.position) == (3, 3)
    resumed.run(silent)
    assert_same(whole, resumed)


@pytest.mark.parametrize("schedule", [{"schedule": "cosine"}, PLATEAU], ids=["cosine", "plateau"])
def test_kill_and_resume_is_bitwise(workplace, tmp_path, schedule):
    """SIGKILL of the command at a random step, also in the middle of writing a checkpoint."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    config = settings(workplace, epochs=8, checkpoint_minutes=0.0, learning_rate=0.1, **schedule)
    whole = Trainer(config, tmp_path / "whole")
    whole.run(silent)
    if schedule is PLATEAU:
        assert whole.progress.factor < 1.0, "the schedule never acted: the test shows nothing"

    write_settings(config, tmp_path / "tiny.toml")
    target = int(np.random.default_rng(seed).integers(1, whole.step // 2))
    checkpoint = tmp_path / "runs" / "tiny" / "checkpoint.pt"
    command = [sys.executable, "-m", "nnpcalc", "train", str(tmp_path / "tiny.toml")]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "runs"), "--threads", "1"],
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if checkpoint.exists() and torch.load(checkpoint, weights_only=True)["step"] >= target:
            process.kill()
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL

    resumed = Trainer(config, checkpoint.parent)
    print(f"killed at step {resumed.step} of {whole.step}")
    assert target <= resumed.step < whole.step
    resumed.run(silent)
    assert_same(whole, resumed)


def test_a_run_stops_at_its_time_and_goes_on(workplace, tmp_path):
    config = settings(workplace, epochs=1)
    lines = []
    trainer = Trainer(config, tmp_path)
    trainer.run(lines.append, until=0.0)
    assert trainer.step == 1 and "time is up" in lines[-1]
    resumed = Trainer(config, tmp_path)
    resumed.run(lines.append)
    assert resumed.epoch == 1 and "starting at step 1" in "\n".join(lines)


def test_checkpoints_of_another_model_or_other_data_are_refused(workplace, tmp_path):
    config = settings(workplace, epochs=1)
    Trainer(config, tmp_path).save()
    model = dataclasses.replace(config.model, options={**config.model.options, "channels": 6})
    with pytest.raises(ValueError, match="another model"):
        Trainer(dataclasses.replace(config, model=model), tmp_path)
    data = dataclasses.replace(config.data, max_force=1.0)
    with pytest.raises(ValueError, match="other training data"):
        Trainer(dataclasses.replace(config, data=data), tmp_path)


def test_changed_options_are_said(workplace, tmp_path):
    Trainer(settings(workplace, epochs=1), tmp_path).save()
    lines = []
    Trainer(settings(workplace, epochs=2), tmp_path).run(lines.append)
    assert "epochs = 1 -> 2" in lines[1]
