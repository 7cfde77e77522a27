"""Several processes train the same model as one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from nnpcalc.train import Trainer
from nnpcalc.train.processes import Processes, join
from train_corpus import settings, silent, write_corpus, write_settings


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_conformer_goes_to_one_process(size):
    n_atoms = np.random.default_rng(0).integers(2, 50, 40)
    shares = [Processes(rank, size).share(n_atoms) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(40))
    atoms = [int(n_atoms[share].sum()) for share in shares]
    assert max(atoms) - min(atoms) <= 48


def test_more_processes_than_conformers():
    shares = [Processes(rank, 4).share(np.array([3, 9])).tolist() for rank in range(4)]
    assert sorted(shares) == [[], [], [0], [1]]


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """The command under torchrun: gradients summed with gloo, files written by process 0 alone."""
    write_corpus(tmp_path)
    config = settings(
        tmp_path, epochs=20, atoms_per_batch=400, learning_rate=1e-3, warmup_steps=0, knots=64
    )
    one = Trainer(config, tmp_path / "one")
    one.run(silent)
    assert one.steps_per_epoch == 1 and one.step == 20  # so the log holds the loss of every step
    write_settings(config, tmp_path / "tiny.toml")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "nnpcalc", "train", str(tmp_path / "tiny.toml"), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--output", str(tmp_path / "two")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 20:") == 1, "one process reports, not two"
    content = torch.load(tmp_path / "two" / "tiny" / "checkpoint.pt", weights_only=True)
    for column in ("train_loss", "energy_mae_meV_per_atom", "force_mae_meV_per_A"):
        first, second = ([row[column] for row in log] for log in (one.log, content["log"]))
        deviation = np.abs(np.array(second) / np.array(first) - 1.0).max()
        print(f"{column}: {first[0]:.3f} -> {first[-1]:.3f}, largest deviation {deviation:.1e}")
        assert first[-1] < first[0]
        assert deviation < 1e-5


def test_a_numbered_device_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"cannot share cuda:0: say --device cuda"):
        join("cuda:0")
