"""Data and options that make no training: refused at the start, with what is wrong and where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from nnpcalc.cli import main
from nnpcalc.evaluation import ExtrapolationWarning
from nnpcalc.factory import build_potential
from nnpcalc.train import Trainer, read_config, train
from nnpcalc.train.command import evaluate_model, golden_structures
from nnpcalc.train.data import Dataset, fit_baseline, read_corpus, read_npz
from nnpcalc.train.readers import read_dataset
from nnpcalc.weights import load_card, save_potential
from train_corpus import CONFIG, settings, silent, structures, write_corpus


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("refusals")
    write_corpus(directory)
    return directory


def arrays_of(workplace: Path) -> dict[str, np.ndarray]:
    with np.load(workplace / "tiny.npz") as data:
        return dict(data)


def changed(array: np.ndarray, value: Any, dtype: Any = None) -> np.ndarray:
    array = array.astype(dtype or array.dtype)
    array[0] = value
    return array


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("forces", lambda a: np.concatenate([a, a]), r"forces is of shape \[834, 3\], not \[417, "),
        ("forces", lambda a: a.ravel(), r"forces is of shape \[1251\], not \[417, 3\]: n_atoms co"),
        ("charges", lambda a: a[:-1], r"tiny.npz: charges is of shape \[416\], not \[417\]"),
        ("energy", lambda a: a[:-1], r"energy is of shape \[119\], not \[120\]"),
        ("energy", lambda a: a[:, None], r"energy is of shape \[120, 1\], not \[120\]"),
        ("energy", lambda a: a.astype(str), r"energy holds <U\d+, not numbers"),
        ("numbers", lambda a: changed(a, 257), "atom 0 has the atomic number 257"),
        ("n_atoms", lambda a: changed(a, 0), "conformer 0 has 0 atoms"),
        ("n_atoms", lambda a: changed(a, a[0] + 1), "n_atoms adds up to 418, numbers holds 417"),
        ("charge", lambda a: changed(a, 0.6, float), r"charge\[0\] is 0.6, not a whole number"),
        ("charge", lambda a: changed(a, np.nan, float), "charge holds values that are not finite"),
        ("charge", lambda a: changed(a, a[0] + 1), r"tiny.npz: 1 of 120 .* number 0, H\d with"),
        (
            "multiplicity",
            lambda a: changed(a, 0),
            "states that do not exist, the first is number 0",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    workplace: Path, tmp_path: Path, name: str, make: Any, message: str
) -> None:
    arrays = arrays_of(workplace)
    np.savez(tmp_path / "tiny.npz", **{**arrays, name: make(arrays[name])})
    with pytest.raises(ValueError, match=message) as caught:
        read_npz(tmp_path / "tiny.npz")
    assert str(tmp_path / "tiny.npz") in str(caught.value)


def test_a_file_that_is_no_archive_is_named(workplace: Path, tmp_path: Path) -> None:
    whole = (workplace / "tiny.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "part.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"part\.npz is no npz file, or not all of one"):
            read_npz(tmp_path / "part.npz")


def test_names_as_bytes_and_the_lowest_multiplicity(workplace: Path, tmp_path: Path) -> None:
    arrays = arrays_of(workplace)
    spin = arrays.pop("multiplicity")
    arrays["source"] = np.array([f"s{k}" for k in arrays["source"]]).astype("S")
    np.savez(tmp_path / "tiny.npz", **arrays)
    part = read_npz(tmp_path / "tiny.npz")
    assert (part["multiplicity"] == spin).all() and set(spin) == {1, 2}
    assert set(part["source"]) == {"s0", "s1"}


def test_coincident_atoms_tell_their_conformer(workplace: Path, tmp_path: Path) -> None:
    arrays = arrays_of(workplace)
    arrays["positions"][1] = arrays["positions"][0]
    np.savez(tmp_path / "tiny.npz", **arrays)
    config = settings(workplace)
    data = dataclasses.replace(config.data, files=(str(tmp_path / "tiny.npz"),))
    with pytest.raises(ValueError, match=r"system 0.*its system 0 is conformer 0 of the data"):
        Trainer(dataclasses.replace(config, data=data), tmp_path / "run")


# --- who validates -----------------------------------------------------------------------------


def frames(names: list[str | None], **info: Any) -> list[Atoms]:
    """One structure each, in different places, with its molecule if it has a name."""
    rng = np.random.default_rng(len(names))
    result = []
    for name in names:
        atoms = Atoms("H2", rng.normal(size=(2, 3)))
        atoms.info = {"REF_energy": -30.0, **info, **({"molecule": name} if name else {})}
        atoms.arrays["REF_forces"] = np.zeros((2, 3))
        result.append(atoms)
    return result


def test_the_undecided_go_where_their_molecule_is(tmp_path: Path) -> None:
    decided = frames(["a", "b", "c"], split="train") + frames(["d", "e"], split="validation")
    write(tmp_path / "decided.xyz", decided)
    write(tmp_path / "open.xyz", frames([*"abcdefghijklmnopqrst"] * 2))
    train_set, validation = read_dataset(
        [tmp_path / "decided.xyz", tmp_path / "open.xyz"], validation_fraction=0.2
    )
    assert not set(train_set.molecule) & set(validation.molecule)
    assert len(train_set) + len(validation) == 45
    # d and e with their three structures each, and a fifth of the 30 that nobody had decided
    assert (len(validation), len(set(validation.molecule))) == (12, 5)


def test_copies_of_a_structure_stay_together(tmp_path: Path) -> None:
    write(tmp_path / "one.xyz", frames([None] * 40))
    name = str(tmp_path / "one.xyz")
    train_set, validation = read_dataset([name, name], split_by="conformer")
    seen = {p.tobytes() for p in train_set.positions.reshape(-1, 2, 3)}
    assert len(validation) == 4 and len(train_set) == 76
    assert not seen & {p.tobytes() for p in validation.positions.reshape(-1, 2, 3)}


def test_frames_without_a_molecule_are_told_apart_by_formula(tmp_path: Path) -> None:
    write(tmp_path / "one.xyz", frames([None] * 40))
    with pytest.raises(ValueError, match=r"are of one molecule: .* set split_by = 'conformer'"):
        read_dataset([tmp_path / "one.xyz"])


# --- atomic energies ---------------------------------------------------------------------------


def labelled(composition: list[list[int]], energies: list[float]) -> Dataset:
    sizes = np.array([len(numbers) for numbers in composition])
    total, m = int(sizes.sum()), len(composition)
    zeros = np.zeros(m, dtype=np.int64)
    return Dataset(
        n_atoms=sizes, numbers=np.concatenate(composition).astype(np.uint8),
        positions=np.zeros((total, 3), np.float32), energy=np.array(energies),
        forces=np.zeros((total, 3), np.float32), charge=zeros, multiplicity=zeros + 1,
        source=zeros, molecule=zeros,
    )  # fmt: skip


def test_an_element_only_in_outliers_keeps_its_atomic_energy() -> None:
    """Two conformers in 202 hold phosphorus and do not fit: they are not trimmed away."""
    rng = np.random.default_rng(0)
    composition = [[6] * c + [1] * (2 * c + 2) for c in rng.integers(1, 5, size=200)]
    energies = [-1000.0 * n.count(6) - 15.0 * n.count(1) for n in composition]
    found = fit_baseline(
        labelled([*composition, [15, 1, 1, 1], [15, 15]], [*energies, -9300.0, -18500.0])
    )
    assert found.atomic_energies[15] == pytest.approx(-9250.0, abs=20.0)
    assert found.atomic_energies[6] == pytest.approx(-1000.0, abs=1.0)


def test_a_start_without_atomic_energies_gets_those_of_the_data(
    workplace: Path, tmp_path: Path
) -> None:
    config = settings(workplace)
    options = {**config.model.options, "elements": [1, 6]}
    card = {"charges": [-1, 0, 1], "multiplicities": [1, 2]}
    torch.manual_seed(1)
    save_potential(build_potential("tensornet", **options), tmp_path / "bare", card)
    text = CONFIG.replace("[training]", f'[training]\ninitial = "{tmp_path / "bare"}"')
    text = text[: text.index("architecture")] + text[text.index("[data]") :]  # all is initial's
    (tmp_path / "tiny.toml").write_text(text)
    read = read_config(tmp_path / "tiny.toml")
    data = dataclasses.replace(read.data, files=(str(workplace / "tiny.npz"),))
    trainer = Trainer(dataclasses.replace(read, data=data), tmp_path / "run")
    assert trainer.baseline.atomic_energies[1] == pytest.approx(-13.0, abs=2.0)
    assert trainer.config.model.zbl_reach == 0.0


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "tensornet"', r"model must be a section, \[model\]"),
        ("data = 3", r"data must be a section"),
        ('terms = ["d3"]', r"terms must be a section"),
        ("[data]\nfiles = [1]", r"files must be names, not 1"),
        ("[data]\nmax_force = 0.0", r"max_force must be above 0"),
        ('[data]\nrepeats = {"a" = 2}', r"repeats is by charge, such as .-1., not 'a'"),
        ('[data]\nrepeats = {"1" = 2.7}', r"repeats: 1 = 2.7 is no number of times"),
        ("[training]\nknots = 1", r"knots must be 0 or at least 16, not 1"),
        ("[training]\nema_decay = -3.0", r"ema_decay must lie in \[0, 1\), not -3.0"),
        ("[training]\nenergy_weight = nan", r"energy_weight must be a number from 0 up, not nan"),
        ("[training]\nlearning_rate = -1.0", r"learning_rate must be a number from 0 up"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(f'name = "bad"\n{text}\n')
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "My Model"}, "'My Model' is no model name: use a-z"),
        ({"name": "a/b"}, "'a/b' is no model name"),
        ({"card": {"cutoff": 3.0}}, r"the card says cutoff = 3.0, the potential 4.0: leave it out"),
        ({"card": {"x": float("inf")}}, "the card of tiny cannot be written as JSON"),
        ({"card": {"x": object()}}, "the card of tiny cannot be written as JSON"),
    ],
)
def test_a_model_that_could_not_be_written_is_not_trained(
    workplace: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(dataclasses.replace(settings(workplace), **changes), tmp_path)


def test_an_element_that_the_network_lacks_is_named(workplace: Path, tmp_path: Path) -> None:
    arrays = arrays_of(workplace)
    arrays["numbers"][-1] = 2  # in the last conformer, which validates
    arrays["multiplicity"][-1] = 3 - arrays["multiplicity"][-1]
    np.savez(tmp_path / "tiny.npz", **arrays)
    config = settings(workplace)
    data = dataclasses.replace(config.data, files=(str(tmp_path / "tiny.npz"),))
    with pytest.raises(ValueError, match="the network has no He, which the data hold"):
        Trainer(dataclasses.replace(config, data=data), tmp_path / "run")


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        ({"5": 3}, "no training conformer has charge 5"),
        ({"-1": 0, "0": 0, "1": 0}, "repeats leave no training conformer"),
    ],
)
def test_repeats_of_nothing_are_refused(
    workplace: Path, tmp_path: Path, repeats: dict[str, int], message: str
) -> None:
    config = settings(workplace)
    data = dataclasses.replace(config.data, repeats=repeats)
    with pytest.raises(ValueError, match=message):
        Trainer(dataclasses.replace(config, data=data), tmp_path)


def test_what_max_force_leaves_out_is_said(workplace: Path, tmp_path: Path) -> None:
    config = settings(workplace, epochs=1)
    data = dataclasses.replace(config.data, max_force=2.0)
    trainer = Trainer(dataclasses.replace(config, data=data), tmp_path)
    lines: list[str] = []
    trainer.run(lines.append)
    assert 0 < trainer.left_out < 100
    assert f"{trainer.left_out} of 100 training conformers left out" in lines[1]


def test_no_clipping_still_trains(workplace: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(workplace, epochs=1, gradient_clip=0.0), tmp_path)
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.run(silent)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


def test_golden_values_come_from_tiny_molecules_if_there_are_no_others(
    workplace: Path, tmp_path: Path
) -> None:
    trainer = Trainer(settings(workplace), tmp_path)
    few = np.flatnonzero(trainer.validation.n_atoms < 4)
    trainer.validation = trainer.validation.take(few)
    assert len(golden_structures(trainer)) >= 3


# --- going on ----------------------------------------------------------------------------------


def test_a_run_goes_on_as_it_began_or_not_at_all(workplace: Path, tmp_path: Path) -> None:
    first = Trainer(settings(workplace, epochs=1), tmp_path)
    first.run(silent)
    with pytest.raises(ValueError, match=r"begun with optimizer = 'adamw', not 'muon'"):
        Trainer(settings(workplace, optimizer="muon"), tmp_path)
    write_corpus(tmp_path)
    train(tmp_path / "tiny.toml", data=tmp_path, output=tmp_path / "other", threads=1)
    model = str(tmp_path / "other" / "tiny" / "model" / "tiny")
    with pytest.raises(ValueError, match=r"begun with initial = '', not .*\(--init\)"):
        Trainer(settings(workplace, initial=model), tmp_path)
    heavier = Trainer(settings(workplace, weight_decay=0.7), tmp_path)
    assert "weight_decay = 0.0 -> 0.7" in heavier.changed
    assert {group["weight_decay"] for group in heavier.optimiser.param_groups} == {0.7}
    config = settings(workplace)
    data = dataclasses.replace(config.data, repeats={"1": 3})
    repeated = Trainer(dataclasses.replace(config, data=data), tmp_path)
    assert "repeats = {} -> {'1': 3}" in repeated.changed
    assert load_card(model)["training"]["initial"] == ""


def test_other_labels_are_other_data(workplace: Path, tmp_path: Path) -> None:
    """Of training: another run. Of validation: the best loss so far says nothing any more."""
    trainer = Trainer(settings(workplace, epochs=1), tmp_path / "run")
    trainer.run(silent)
    arrays = arrays_of(workplace)
    config = settings(workplace, epochs=2)
    last = np.repeat(arrays["split"] == 1, arrays["n_atoms"])
    for name, rows in (("validation", last), ("training", ~last)):
        forces = np.where(rows[:, None], -arrays["forces"], arrays["forces"])
        np.savez(tmp_path / f"{name}.npz", **{**arrays, "forces": forces})
    validation, training = (
        dataclasses.replace(
            config, data=dataclasses.replace(config.data, files=(str(tmp_path / f"{name}.npz"),))
        )
        for name in ("validation", "training")
    )
    with pytest.raises(ValueError, match="was written with other training data"):
        Trainer(training, tmp_path / "run")
    resumed = Trainer(validation, tmp_path / "run")
    assert resumed.progress.best == np.inf and "validation data" in resumed.changed[-1]
    assert Trainer(config, tmp_path / "run").progress.best < np.inf


def test_a_damaged_checkpoint_says_so(workplace: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(workplace, epochs=1), tmp_path)
    trainer.run(silent)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is no whole checkpoint .* move it"):
            Trainer(settings(workplace), tmp_path)


# --- commands ----------------------------------------------------------------------------------


def test_errors_of_the_command_teach(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.replace("learning_rate = 2e-2", "learning_rate = 1e30")
    (tmp_path / "wild.toml").write_text(text.replace('name = "tiny"', 'name = "wild"'))
    command = ["train", str(workplace / "tiny.toml"), "--data", str(workplace), "--output"]
    for arguments, message in (
        ([*command, str(tmp_path), "--device", "gpu"], "device 'gpu' is none that torch knows"),
        ([*command, str(tmp_path), "--threads", "0"], "threads must be at least 1, not 0"),
        (
            ["train", str(tmp_path / "wild.toml"), *command[2:], str(tmp_path)],
            "the gradient is not finite at step",
        ),
    ):
        assert main(arguments) == 2
        assert f"nnpcalc: error: {message}" in capsys.readouterr().err


def test_evaluate_says_which_states_the_model_was_not_trained_on(tmp_path: Path) -> None:
    listed = [a for a in structures(40) if abs(a.info["charge"]) == 1]
    for atoms in listed:
        del atoms.info["split"]
        atoms.info["REF_energy"] = atoms.info.pop("energy")
        atoms.arrays["REF_forces"] = atoms.arrays.pop("forces")
    write(tmp_path / "ions.xyz", listed)
    foreign = sum(a.info["spin"] == 2 for a in listed)
    said = rf"{foreign} of {len(listed)} conformers have multiplicity 2, outside .* multiplicity 1"
    with pytest.warns(ExtrapolationWarning, match=said):
        evaluate_model("tensornet-spice", [tmp_path / "ions.xyz"])
    card = {"charges": [0], "multiplicities": [1]}
    save_potential(build_potential("ani2x"), tmp_path / "ani", card)
    with pytest.raises(ValueError, match=r"conformers are charged .*, which ANI2x does not see"):
        evaluate_model(str(tmp_path / "ani"), [tmp_path / "ions.xyz"])


def test_the_smallest_group_counts_lone_atoms_too(tmp_path: Path, workplace: Path) -> None:
    """And no column runs into the next, however large the error."""
    from nnpcalc.train.predict import Errors
    from nnpcalc.train.report import format_table, table

    dataset = read_corpus([workplace / "tiny.npz"])[1]
    wild = Errors(np.full(len(dataset), 3e5), np.full(dataset.forces.shape, 4e5), None)
    lines = format_table(table(dataset, wild)).splitlines()
    assert any(line.startswith("up to 10 atoms") for line in lines)
    assert len(lines[2].split()) == 6
