"""The loss of shifted minima: against loops, through files, and what it does to a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnpcalc.train import Trainer
from nnpcalc.train.data import collate, index_pairs, read_corpus
from nnpcalc.train.loss import Totals, Weights, loss, shifts
from nnpcalc.train.predict import predict
from train_corpus import settings, silent, write_corpus


def add_modes(directory: Path, share: float = 0.5, count: int = 2) -> None:
    """Write tiny.npz again with random modes for a share of its conformers."""
    with np.load(directory / "tiny.npz") as data:
        arrays = dict(data)
    rng = np.random.default_rng(3)
    rows = np.repeat(rng.random(arrays["n_atoms"].size) < share, arrays["n_atoms"])
    modes = rng.normal(size=(rows.size, count, 3)) * rows[:, None, None]
    np.savez(directory / "tiny.npz", **arrays, soft_modes=modes.astype(np.float16))


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    add_modes(tmp_path)
    return tmp_path


def test_loss_against_loops(workplace: Path) -> None:
    dataset, _ = read_corpus([workplace / "tiny.npz"])
    rows = np.arange(12)
    batch = collate(dataset, index_pairs(dataset, 4.0), rows)
    rng = np.random.default_rng(1)
    error = rng.normal(size=batch.forces.shape) * 0.1
    output = {"energy": batch.energy, "forces": batch.forces.double() + torch.from_numpy(error)}
    expected, first = [], 0
    for n in batch.n_atoms.tolist():
        modes = batch.soft_modes[first : first + n].double().numpy()
        along = [(modes[:, m] * error[first : first + n]).sum() for m in range(2)]
        expected.append(np.sqrt((np.square(along).sum()) / n + 1e-6))
        first += n
    resting = np.array(expected) > 0.0011
    assert 2 < resting.sum() < 11
    assert shifts(torch.from_numpy(error), batch).numpy() == pytest.approx(expected)
    totals = Totals(12, first, 0)
    with_, without = (loss(output, batch, Weights(5.0, 1.0, 0.0, w), totals) for w in (4.0, 0.0))
    assert float(with_ - without) == pytest.approx(4.0 * np.mean(expected))


def test_files_without_modes_and_with_fewer_go_together(workplace: Path) -> None:
    other, several = workplace / "other", workplace / "several"
    for directory in (other, several):
        directory.mkdir()
        write_corpus(directory)
    add_modes(several, count=5)
    plain, few = read_corpus([other / "tiny.npz"])[0], read_corpus([workplace / "tiny.npz"])[0]
    assert plain.soft_modes.shape == (plain.numbers.size, 0, 3)
    names = [directory / "tiny.npz" for directory in (other, workplace, several)]
    whole, _ = read_corpus(names)
    n = plain.numbers.size
    assert whole.soft_modes.shape == (3 * n, 5, 3)
    assert not whole.soft_modes[:n].any()
    assert (whole.soft_modes[n : 2 * n, :2] == few.soft_modes).all()
    assert not whole.soft_modes[n : 2 * n, 2:].any()
    assert whole.soft_modes[2 * n :, 4].any()
    last = whole.take(np.array([len(whole) - 1]))
    assert (last.soft_modes == whole.soft_modes[-last.numbers.size :]).all()


def test_training_lowers_the_shift(workplace: Path, tmp_path: Path) -> None:
    """Along the chain, where forces of a Morse potential are."""
    with np.load(workplace / "tiny.npz") as data:
        arrays = dict(data)
    arrays["soft_modes"] = arrays["soft_modes"] * np.array([0.0, 0.0, 0.0], np.float16)
    ends = np.cumsum(arrays["n_atoms"])
    arrays["soft_modes"][ends - 1, 0, 0] = 1.0
    arrays["soft_modes"][ends - arrays["n_atoms"], 0, 0] = -1.0
    np.savez(workplace / "tiny.npz", **arrays)
    found = {}
    for weight in (0.0, 30.0):
        config = settings(workplace, epochs=15, shift_weight=weight)
        trainer = Trainer(config, tmp_path / f"run-{weight}")
        trainer.run(silent)
        data = trainer.train
        batch = collate(data, trainer.train_pairs, np.arange(len(data)))
        output = predict(trainer.potential, batch, create_graph=False)
        found[weight] = float(shifts(output["forces"].detach() - batch.forces, batch).mean())
    assert found[30.0] < 0.9 * found[0.0], found


def test_a_weight_without_modes_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"shift_weight is set, but no conformer has soft modes"):
        Trainer(settings(tmp_path, shift_weight=1.0), tmp_path / "run")


def test_modes_that_are_not_finite_are_refused(workplace: Path) -> None:
    with np.load(workplace / "tiny.npz") as data:
        arrays = dict(data)
    arrays["soft_modes"] = arrays["soft_modes"].copy()
    arrays["soft_modes"][0, 0, 0] = np.inf
    np.savez(workplace / "tiny.npz", **arrays)
    with pytest.raises(ValueError, match="soft_modes holds values that are not finite"):
        read_corpus([workplace / "tiny.npz"])


@pytest.mark.parametrize("cut", [np.s_[:-1], np.s_[:, 0], np.s_[:, :, :2]])
def test_modes_of_a_wrong_shape_are_refused(workplace: Path, cut: object) -> None:
    with np.load(workplace / "tiny.npz") as data:
        arrays = dict(data)
    np.savez(workplace / "tiny.npz", **{**arrays, "soft_modes": arrays["soft_modes"][cut]})
    with pytest.raises(ValueError, match=r"soft_modes is of shape .*, not \[\d+, K, 3\]"):
        read_corpus([workplace / "tiny.npz"])


def test_processes_share_the_loss(workplace: Path, tmp_path: Path) -> None:
    """The parts of two processes add up to the loss of the whole batch."""
    config = settings(workplace, shift_weight=7.0)
    trainer = Trainer(config, tmp_path / "run")
    rows = trainer.epoch_batches(0)[0]
    data, pairs = trainer.train, trainer.train_pairs
    totals = Totals(rows.size, int(data.n_atoms[rows].sum()), 0)
    weights = Weights(5.0, 1.0, 0.0, 7.0)
    values = []
    for part in (rows, rows[::2], rows[1::2]):
        batch = collate(data, pairs, part)
        output = {"energy": batch.energy + 0.1, "forces": batch.forces + 0.2}
        values.append(float(loss(output, batch, weights, totals)))
    assert values[0] == pytest.approx(values[1] + values[2], rel=1e-5)
