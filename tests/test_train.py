"""Training learns, ships a model, and says what is wrong with its input."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from nnpcalc import NNPCalculator
from nnpcalc.cli import main
from nnpcalc.models import ARCHITECTURES
from nnpcalc.models.tensornet import TensorNet
from nnpcalc.terms import StateEnergy
from nnpcalc.train import Trainer, read_config
from nnpcalc.train.command import evaluate_model, train
from nnpcalc.train.config import DataConfig, ModelConfig, TrainingConfig
from nnpcalc.train.data import (
    Dataset,
    batches,
    collate,
    fit_baseline,
    index_pairs,
    read_corpus,
    rows_of,
)
from nnpcalc.train.log import Events, Ticker, ticker
from nnpcalc.train.loss import Totals, Weights, loss
from nnpcalc.train.predict import Errors, evaluate, predict
from nnpcalc.train.report import format_table, table
from nnpcalc.train.schedule import Progress, learning_rate
from nnpcalc.weights import load_potential
from train_corpus import settings, silent, structures, write_corpus

EXAMPLES = Path(__file__).parents[1] / "examples" / "training"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("train")
    write_corpus(directory)
    return directory


def test_training_lowers_the_error_and_ships_a_model(workplace, tmp_path, capsys):
    directory = train(workplace / "tiny.toml", data=workplace, output=tmp_path, threads=1)
    with open(directory / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    errors = [float(row["force_mae_meV_per_A"]) for row in log]
    labels = read_corpus([workplace / "tiny.npz"])[1].forces
    assert len(errors) == 6
    assert min(errors) < 1000.0 * np.abs(labels).mean()  # better than no force at all
    assert float(log[-1]["train_loss"]) < float(log[0]["train_loss"])
    assert (directory / "training.png").stat().st_size > 5000
    assert (directory / "parity.png").stat().st_size > 5000
    model = directory / "model" / "tiny"
    card = load_potential(model).card
    assert card["reference_method"] == "Morse potential"
    assert card["charges"] == [-1, 0, 1]
    assert card["accuracy"][0]["group"] == "all"
    capsys.readouterr()

    file, plots = tmp_path / "table.json", tmp_path / "plots"
    arguments = ["evaluate", str(model), str(workplace / "tiny.npz"), "--threads", "1"]
    assert main([*arguments, "--json", str(file), "--plots", str(plots)]) == 0
    groups = [row["group"] for row in card["accuracy"]]
    assert {"charge -1", "multiplicity 2", "source 1", "up to 10 atoms", "element H"} <= set(groups)
    printed = capsys.readouterr().out.splitlines()[2:]
    assert [line[:16].strip() for line in printed] == groups
    written = json.loads(file.read_text())
    assert written["split"] == "validation"
    assert [row["group"] for row in written["rows"]] == groups
    expected = pytest.approx(card["accuracy"][0]["force_mae"], rel=0.02)
    assert written["rows"][0]["force_mae"] == expected
    assert (plots / "parity.png").stat().st_size > 5000

    write(tmp_path / "all.xyz", structures()[:7], format="extxyz")
    rows = evaluate_model(model, [tmp_path / "all.xyz"], split="all")
    assert rows[0].conformers == 7
    with pytest.raises(ValueError, match=r"all\.xyz: no validation conformers"):
        evaluate_model(model, [tmp_path / "all.xyz"])


def test_python_dash_m():
    command = [sys.executable, "-m", "nnpcalc", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("nnpcalc ")


def test_fused_and_eager_training_agree(workplace, tmp_path):
    losses = []
    for knots in (0, 1024):
        trainer = Trainer(settings(workplace, knots=knots), tmp_path / str(knots))
        losses.append([trainer.update(rows)[0] for rows in trainer.epoch_batches(0)[:5]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def test_early_stopping(workplace, tmp_path):
    """With a learning rate of nothing the validation loss never improves after the first epoch."""
    lines = []
    config = settings(
        workplace, epochs=9, learning_rate=0.0, final_learning_rate=0.0, ema_decay=0.0, patience=2
    )
    trainer = Trainer(config, tmp_path)
    trainer.run(lines.append)
    assert trainer.epoch == 3
    assert "no better validation loss for 2 epochs" in lines[-1]


def test_schedules():
    options = TrainingConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=4)
    rates = [learning_rate(Progress(step=k), 24, options) for k in range(25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[14] == pytest.approx(0.55) and rates[24] == pytest.approx(0.1)
    assert np.all(np.diff(rates[3:]) <= 0.0)

    plateau = dataclasses.replace(options, schedule="plateau", plateau_patience=2)
    progress, seen = Progress(step=10), []
    for value in (3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        progress = progress.after_epoch(value, plateau)
        seen.append(learning_rate(progress, 24, plateau))
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.1]
    assert (progress.best, progress.stale) == (1.0, 6)


def test_batches_by_pairs(workplace, tmp_path):
    trainer = Trainer(settings(workplace, pairs_per_batch=90), tmp_path)
    pairs = np.diff(trainer.train_pairs.offsets)
    plan = trainer.epoch_batches(0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(trainer.train)))
    assert max(pairs[rows].sum() for rows in plan) <= 90
    assert len(plan) <= np.ceil(pairs.sum() / (90 - pairs.max()))


def test_the_energy_of_the_state_is_an_option(workplace, tmp_path):
    for wanted in (True, False):
        config = settings(workplace)
        model = dataclasses.replace(config.model, state_energy=wanted)
        config = dataclasses.replace(config, model=model)
        trainer = Trainer(config, tmp_path / str(wanted))
        assert any(isinstance(term, StateEnergy) for term in trainer.potential.terms) == wanted
        assert any(trainer.baseline.state) == wanted
        left = trainer.train.energy - trainer.baseline.of(trainer.train)
        coefficient = np.polyfit(trainer.train.charge, left, 1)[0]
        assert abs(coefficient) < 0.3 if wanted else coefficient == pytest.approx(2.0, abs=0.3)


# --- the loss ------------------------------------------------------------------------------------


class ChargedNet(TensorNet):
    """A TensorNet that also returns partial charges: a learned fraction of the total charge."""

    def __init__(self, config):
        super().__init__(config)
        self.fraction = torch.nn.Parameter(torch.zeros(()))

    def forward(self, numbers, pairs, vectors, distances, system, charge, *others):
        output = super().forward(numbers, pairs, vectors, distances, system, charge, *others)
        output["charges"] = self.fraction * charge[system]
        return output


def test_loss_against_loops(workplace):
    dataset, _ = read_corpus([workplace / "tiny.npz"])
    dataset.partial_charges[::3] = np.nan
    batch = collate(dataset, index_pairs(dataset, 4.0), np.array([3, 17, 40]))
    rng = np.random.default_rng(1)
    output = {
        "energy": batch.energy + torch.tensor(rng.normal(size=3)),
        "forces": batch.forces + torch.tensor(rng.normal(size=batch.forces.shape)),
        "charges": torch.tensor(rng.normal(size=batch.numbers.shape)),
    }
    atoms = batch.numbers.shape[0]
    labelled = int(torch.isfinite(batch.partial_charges).sum())
    assert 0 < labelled < atoms
    found = loss(output, batch, Weights(5.0, 2.0, 3.0), Totals(3, atoms, labelled))
    energy = force = charge = 0.0
    for k in range(3):
        error = float(output["energy"][k] - batch.energy[k]) / int(batch.n_atoms[k])
        energy += np.hypot(error, 1e-3) / 3
    for k in range(atoms):
        error = (output["forces"][k] - batch.forces[k]).numpy()
        force += np.sqrt((error**2).sum() + 1e-6) / atoms
        if np.isfinite(float(batch.partial_charges[k])):
            charge += np.hypot(float(output["charges"][k] - batch.partial_charges[k]), 1e-3)
    assert float(found) == pytest.approx(5.0 * energy + 2.0 * force + 3.0 * charge / labelled)
    del output["charges"]
    with pytest.raises(ValueError, match=r"no partial charges to train: set .* charge_weight = 0"):
        loss(output, batch, Weights(5.0, 2.0, 3.0), Totals(3, atoms, labelled))


def test_partial_charges_are_learned(workplace, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tensornet", ChargedNet)
    trainer = Trainer(settings(workplace, knots=0, epochs=4, charge_weight=5.0), tmp_path)
    trainer.run(silent)
    labels, charge = trainer.train.partial_charges, trainer.train.charge
    charge = np.repeat(charge, trainer.train.n_atoms)
    best = min(np.linspace(0.0, 1.0, 101), key=lambda x: np.abs(x * charge - labels).mean())
    assert float(trainer.potential.core.fraction.detach()) == pytest.approx(best, abs=0.08)
    assert trainer.log[-1]["charge_mae_me"] < 0.8 * 1e3 * np.abs(labels).mean()
    batch = collate(trainer.train, trainer.train_pairs, np.arange(3))
    assert "charges" in predict(trainer.potential, batch, create_graph=False)


def test_charges_without_labels_are_refused(workplace, tmp_path):
    with np.load(workplace / "tiny.npz") as data:
        np.savez(tmp_path / "bare.npz", **{k: v for k, v in data.items() if k != "charges"})
    config = settings(workplace, charge_weight=1.0)
    data = dataclasses.replace(config.data, files=(str(tmp_path / "bare.npz"),))
    with pytest.raises(ValueError, match="no atom has a partial charge"):
        Trainer(dataclasses.replace(config, data=data), tmp_path / "run")


# --- baseline, batches, tables -------------------------------------------------------------------


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


def test_fixed_attribute_weights_stay(workplace, tmp_path):
    config = settings(workplace, epochs=1)
    options = {**config.model.options, "attributes": ("charge",), "attribute_weights": (0.1,)}
    fixed = {**options, "learnable_attribute_weights": False}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, options=fixed))
    trainer = Trainer(config, tmp_path)
    trainer.run(report=lambda _: None)
    weights = [float(layer.attribute_weights) for layer in trainer.potential.core.layers]
    assert weights and weights == [pytest.approx(0.1)] * len(weights)


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
    charges = np.full(dataset.numbers.size, 0.02)
    charges[::2] = np.nan
    errors = Errors(0.001 * dataset.n_atoms, np.full_like(dataset.forces, 0.05), charges)
    rows = {row.group: row for row in table(dataset, errors)}
    assert rows["all"].energy_mae == pytest.approx(1.0)
    assert rows["all"].force_mae == pytest.approx(50.0)
    assert rows["all"].charge_mae == pytest.approx(20.0)
    for kind in ("charge", "multiplicity", "source"):
        counted = sum(r.conformers for name, r in rows.items() if name.startswith(kind))
        assert counted == rows["all"].conformers == len(dataset)
    assert format_table([rows["all"]]).splitlines()[2].split() == [
        "all", "100", "1.00", "1.00", "50.0", "50.0", "20.0"
    ]  # fmt: skip


# --- what a run says ---------------------------------------------------------------------------


def test_a_line_a_minute_or_a_bar(monkeypatch, capsys):
    lines = []
    clock = iter([0.0, 10.0, 61.0, 62.0])
    monkeypatch.setattr("nnpcalc.train.log.time.monotonic", lambda: next(clock))
    plain = Ticker(lines.append, 100, 0)
    plain.tick(0, 1, 2.0, 30)
    plain.tick(0, 2, 4.0, 31)
    assert lines == ["epoch 0 step 2/100 loss 3.0000 1 structures/s"]
    monkeypatch.undo()
    pytest.importorskip("tqdm")
    bar = ticker(lines.append, 100, 0, bar=True)
    bar.tick(0, 1, 2.0, 30)
    bar.say("validated")
    bar.close()
    assert lines[-1] == "validated" and "1/100" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert type(ticker(lines.append, 100, 0, bar=True)) is Ticker


def test_tensorboard_is_written_or_its_remedy_said(tmp_path, monkeypatch):
    Events(tmp_path, False, 0).add(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'nnpcalc\[tensorboard\]'"):
        Events(tmp_path, True, 0)
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    events = Events(tmp_path, True, 0)
    events.add(1, {"loss": 1.0})
    events.close()
    assert list(tmp_path.glob("events*"))


# --- what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[training]\nepoch = 3", "no option 'epoch'"),
        ("[optimizer]\nlr = 1", r"found data, model, name, optimizer"),
        ("[training]\nepochs = '3'", r"\[training\] epochs must be a int, not the str '3'"),
        ("[training]\nepochs = 0", r"epochs must be at least 1, or 0 with initial"),
        ("[training]\nepochs = -1\ninitial = 'a'", r"at least 1, or 0 with initial, not -1"),
        ("[training]\ntensorboard = 1", r"tensorboard must be a bool"),
        ("[training]\nschedule = 'step'", r"schedule = 'step'; known are cosine, plateau"),
        ("[training]\nprecision = 'fp8'", r"precision = 'fp8'; known are float32, tf32, bfloat16"),
        ("[training]\nplateau_factor = 2.0", r"plateau_factor must lie between 0 and 1"),
        ("[training", r"bad\.toml is not valid TOML"),
    ],
)
def test_wrong_options_are_errors(tmp_path, line, message):
    path = tmp_path / "bad.toml"
    path.write_text(f'name = "x"\n[model]\n[data]\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_the_examples_are_valid():
    files = sorted(EXAMPLES.glob("*.toml"))
    assert len(files) >= 2
    for file in files:
        assert read_config(file).name


def test_every_option_is_documented():
    """The table in examples/training/README.md names every option and its default."""
    text = (EXAMPLES / "README.md").read_text()
    documented = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1].startswith("`"):
            documented[cells[1].strip("`")] = cells[2].strip("`")
    expected = {}
    for title, section in (("data", DataConfig()), ("model", ModelConfig()),
                           ("training", TrainingConfig())):  # fmt: skip
        for key, value in dataclasses.asdict(section).items():
            if key != "options":
                value = list(value) if isinstance(value, tuple) else value
                expected[f"{title}.{key}"] = json.dumps(value)
    assert {k: json.dumps(json.loads(v)) for k, v in documented.items()} == expected


def test_a_corpus_without_forces_is_named(tmp_path):
    np.savez(tmp_path / "bad.npz", n_atoms=np.array([1]))
    with pytest.raises(ValueError, match=r"bad\.npz lacks the arrays charge"):
        read_corpus([tmp_path / "bad.npz"])


def test_empty_sets_are_refused(workplace, tmp_path):
    config = settings(workplace)
    write(tmp_path / "a.xyz", structures()[:5], format="extxyz")  # all for training
    for changes, message in (
        ({"files": (str(tmp_path / "a.xyz"),)}, "5 conformers for training and 0 for validation"),
        ({"max_force": 1e-9}, "every training conformer has a force above"),
    ):
        data = dataclasses.replace(config.data, **changes)
        with pytest.raises(ValueError, match=message):
            Trainer(dataclasses.replace(config, data=data), tmp_path / "run")


def test_partial_charges_can_be_told_to_the_network(tmp_path):
    """What a training batch gets is what the calculator computes from the same charges."""
    write_corpus(tmp_path)
    with np.load(tmp_path / "tiny.npz") as data:
        arrays = dict(data)
    rng = np.random.default_rng(3)
    charges = rng.uniform(-1.0, 1.0, arrays["numbers"].size).astype(np.float32)
    np.savez(tmp_path / "tiny.npz", **arrays, given_charges=charges)
    config = settings(tmp_path, epochs=1)
    told = {"attributes": ["partial_charges"], "attribute_weights": [5.0]}
    model = dataclasses.replace(config.model, options={**config.model.options, **told})
    config = dataclasses.replace(config, model=model)
    trainer = Trainer(config, tmp_path / "told")
    trainer.run(silent)
    calc = NNPCalculator(trainer.potential, backend="eager", on_extrapolation="warn")
    data = trainer.validation
    errors = evaluate(trainer.fast, data, trainer.validation_pairs, trainer.device)
    effect = []
    for row in range(4):
        atoms = slice(data.offsets[row], data.offsets[row + 1])
        molecule = Atoms(data.numbers[atoms], data.positions[atoms])
        molecule.info.update(charge=int(data.charge[row]), spin=int(data.multiplicity[row]))
        molecule.arrays["partial_charges"] = data.given_charges[atoms].astype(float)
        found = calc.evaluate([molecule])[0].energy
        assert found == pytest.approx(errors.energy[row] + data.energy[row], abs=1e-4)
        molecule.arrays["partial_charges"] *= 0.0
        effect.append(abs(found - calc.evaluate([molecule])[0].energy))
    assert max(effect) > 1e-3
    np.savez(tmp_path / "tiny.npz", **arrays)
    with pytest.raises(ValueError, match=r"is told partial charges, but .* in conformer 0"):
        Trainer(config, tmp_path / "missing")
