"""Training learns, resumes exactly, and says what is wrong with its input."""

import dataclasses
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.morse import MorsePotential

from nnpcalc.train import Trainer, read_config
from nnpcalc.train.command import evaluate_model, train
from nnpcalc.train.data import Dataset, batches, fit_baseline, read_corpus, rows_of
from nnpcalc.train.report import Errors, table
from nnpcalc.weights import load_potential

CONFIG = """
name = "tiny"
[model]
architecture = "tensornet"
channels = 8
layers = 1
radial_functions = 8
cutoff = 4.0
[data]
files = ["tiny.npz"]
[training]
epochs = 6
atoms_per_batch = 20
learning_rate = 2e-2
warmup_steps = 5
ema_decay = 0.9
knots = 128
[card]
reference_method = "Morse potential"
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with a corpus: ASE's Morse potential plus an energy of the charge."""
    directory = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(5)
    rows: dict[str, list] = {key: [] for key in (
        "n_atoms", "charge", "multiplicity", "energy", "molecule", "source", "split",
        "numbers", "positions", "forces",
    )}  # fmt: skip
    for k in range(120):
        n = int(rng.integers(2, 6))
        atoms = Atoms("H" * n, rng.normal(size=(n, 3)) * 0.25 + np.arange(n)[:, None] * 0.8)
        atoms.calc = MorsePotential(epsilon=1.0, r0=1.0, rho0=3.0)
        charge = int(rng.integers(-1, 2))
        rows["n_atoms"].append(n)
        rows["charge"].append(charge)
        rows["multiplicity"].append(1 + (n - charge) % 2)
        rows["energy"].append(atoms.get_potential_energy() - 13.0 * n + 2.0 * charge)
        rows["molecule"].append(k // 4)
        rows["source"].append(k % 2)
        rows["split"].append(int(k >= 100))
        rows["numbers"].append(atoms.numbers)
        rows["positions"].append(atoms.positions)
        rows["forces"].append(atoms.get_forces())
    whole = {key: np.asarray(value) for key, value in rows.items() if key not in
             ("numbers", "positions", "forces")}  # fmt: skip
    for key in ("numbers", "positions", "forces"):
        whole[key] = np.concatenate(rows[key])
    np.savez(directory / "tiny.npz", **whole)
    (directory / "tiny.toml").write_text(CONFIG)
    return directory


def settings(workplace, **training):
    training = {"epochs": 3, "atoms_per_batch": 60, **training}
    config = read_config(workplace / "tiny.toml")
    data = dataclasses.replace(config.data, files=(str(workplace / "tiny.npz"),))
    options = dataclasses.replace(config.training, **training)
    return dataclasses.replace(config, data=data, training=options)


def silent(_: str) -> None:
    pass


def test_training_lowers_the_error_and_ships_a_model(workplace, tmp_path):
    directory = train(workplace / "tiny.toml", data=workplace, output=tmp_path, threads=1)
    log = (directory / "log.csv").read_text().splitlines()
    column = log[0].split(",").index("force_mae_meV_per_A")
    errors = [float(line.split(",")[column]) for line in log[1:]]
    labels = read_corpus([workplace / "tiny.npz"])[1].forces
    assert len(errors) == 6
    assert min(errors) < 1000.0 * np.abs(labels).mean()  # better than no force at all
    assert (directory / "training.png").stat().st_size > 5000
    assert (directory / "parity.png").stat().st_size > 5000
    potential = load_potential(directory / "model" / "tiny")
    assert potential.card["reference_method"] == "Morse potential"
    assert potential.card["charges"] == [-1, 0, 1]
    assert potential.card["accuracy"][0]["group"] == "all"
    rows = evaluate_model(directory / "model" / "tiny", [workplace / "tiny.npz"], threads=1)
    assert [r.group for r in rows] == [r["group"] for r in potential.card["accuracy"]]
    assert rows[0].force_mae == pytest.approx(potential.card["accuracy"][0]["force_mae"], rel=0.02)


@pytest.mark.parametrize("knots", [0, 128])
def test_resume_is_bitwise(workplace, tmp_path, knots):
    config = settings(workplace, knots=knots)
    whole = Trainer(config, tmp_path / "whole")
    whole.run(silent)
    part = Trainer(config, tmp_path / "part")
    plan = part.epoch_batches(0)
    from nnpcalc.train.trainer import collate

    for rows in plan[:3]:
        part.update(collate(part.train, part.train_pairs, rows))
        part.position += 1
    part.save()
    part.update(collate(part.train, part.train_pairs, plan[3]))  # lost, as if killed
    resumed = Trainer(config, tmp_path / "part")
    assert (resumed.step, resumed.position) == (3, 3)
    resumed.run(silent)
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.average, resumed.average, strict=True):
        assert torch.equal(one, other)
    strip = [{k: v for k, v in row.items() if k != "unix_time"} for row in resumed.log]
    assert strip == [{k: v for k, v in row.items() if k != "unix_time"} for row in whole.log]


def test_fused_and_eager_training_agree(workplace, tmp_path):
    losses = []
    for knots in (0, 1024):
        trainer = Trainer(settings(workplace, knots=knots), tmp_path / str(knots))
        from nnpcalc.train.trainer import collate

        plan = trainer.epoch_batches(0)
        losses.append([
            trainer.update(collate(trainer.train, trainer.train_pairs, rows)) for rows in plan[:5]
        ])  # fmt: skip
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def test_a_checkpoint_of_another_model_is_refused(workplace, tmp_path):
    config = settings(workplace, epochs=1)
    Trainer(config, tmp_path).save()
    model = dataclasses.replace(config.model, options={**config.model.options, "channels": 6})
    with pytest.raises(ValueError, match="another model"):
        Trainer(dataclasses.replace(config, model=model), tmp_path)


def made_up_energies(charges, multiplicities):
    """A data set whose energies are exactly -13.5 per hydrogen, -75 per oxygen and the state's."""
    rng = np.random.default_rng(3)
    n_atoms = rng.integers(2, 6, len(charges))
    numbers = rng.choice(np.array([1, 8], dtype=np.uint8), n_atoms.sum())
    first = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
    atoms = np.add.reduceat(np.where(numbers == 1, -13.5, -75.0), first)
    q, u = np.array(charges), np.array(multiplicities) - 1
    nowhere = np.zeros((numbers.size, 3), np.float32)
    return Dataset(
        n_atoms=n_atoms, numbers=numbers, positions=nowhere, forces=nowhere,
        energy=atoms + 4.0 * q + 2.5 * q**2 + 1.5 * u,
        charge=q, multiplicity=u + 1, source=np.zeros_like(q), molecule=np.zeros_like(q),
    )  # fmt: skip


def test_baseline_by_least_squares():
    dataset = made_up_energies([-2, -1, 0, 1, 2] * 20, [1, 2, 3, 2] * 25)
    baseline = fit_baseline(dataset)
    assert baseline.atomic_energies == pytest.approx({1: -13.5, 8: -75.0})
    assert baseline.state == pytest.approx((4.0, 2.5, 1.5))
    np.testing.assert_allclose(baseline.of(dataset), dataset.energy, atol=1e-8)


def test_baseline_leaves_out_what_the_data_do_not_tell():
    dataset = made_up_energies([0] * 40, [1] * 40)
    baseline = fit_baseline(dataset)
    assert baseline.atomic_energies == pytest.approx({1: -13.5, 8: -75.0})
    assert baseline.state == (0.0, 0.0, 0.0)


def test_batches_hold_every_row_once_and_keep_the_limit():
    n_atoms = np.array([3, 50, 2, 8, 8, 1])
    order = np.array([5, 4, 3, 2, 1, 0])
    groups = list(batches(n_atoms, order, 12))
    assert np.concatenate(groups).tolist() == order.tolist()
    assert all(n_atoms[g].sum() <= 12 or g.size == 1 for g in groups)


def test_rows_of():
    assert rows_of(np.array([0, 2, 2, 5]), np.array([2, 0, 1])).tolist() == [2, 3, 4, 0, 1]


def test_table_groups(workplace):
    dataset, _ = read_corpus([workplace / "tiny.npz"])
    errors = Errors(0.001 * dataset.n_atoms, np.full_like(dataset.forces, 0.05))
    rows = {row.group: row for row in table(dataset, errors)}
    assert rows["all"].energy_mae == pytest.approx(1.0)
    assert rows["all"].force_mae == pytest.approx(50.0)
    counted = sum(r.conformers for name, r in rows.items() if name.startswith("charge"))
    assert counted == rows["all"].conformers == len(dataset)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[training]\nepoch = 3", "no option 'epoch'"),
        ("[optimizer]\nlr = 1", r"found data, model, name, optimizer"),
    ],
)
def test_unknown_options_are_errors(tmp_path, line, message):
    path = tmp_path / "bad.toml"
    path.write_text(f'name = "x"\n[model]\n[data]\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_a_corpus_without_forces_is_named(tmp_path):
    np.savez(tmp_path / "bad.npz", n_atoms=np.array([1]))
    with pytest.raises(ValueError, match=r"bad\.npz lacks the arrays charge"):
        read_corpus([tmp_path / "bad.npz"])


def test_kill_and_resume_is_bitwise(workplace, tmp_path):
    """SIGKILL at moments nobody chose; the log and the weights are those of an unbroken run."""
    text = CONFIG.replace("knots = 128", "knots = 64\ncheckpoint_minutes = 0.0")
    config = tmp_path / "tiny.toml"
    config.write_text(text)

    def start(output):
        command = [sys.executable, "-m", "nnpcalc.cli", "train", str(config), "--threads", "1"]
        command += ["--data", str(workplace), "--output", str(output)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    checkpoint = tmp_path / "killed" / "tiny" / "checkpoint.pt"
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    for _ in range(2):
        process = start(tmp_path / "killed")
        before = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        while process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime > before:
                time.sleep(rng.uniform(0.0, 0.3))
                process.kill()
                break
            time.sleep(0.01)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0

    def outcome(output):
        directory = output / "tiny"
        content = torch.load(directory / "checkpoint.pt", weights_only=True)
        log = [{k: v for k, v in row.items() if k != "unix_time"} for row in content["log"]]
        return content["state"], log

    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert whole[1] == killed[1]
    assert all(torch.equal(whole[0][key], killed[0][key]) for key in whole[0])
