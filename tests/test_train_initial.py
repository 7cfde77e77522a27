"""Fine-tuning: starting from the weights of another model."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.tensornet import TensorNet
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.train import Trainer, train
from nnpcalc.train.build import baseline_of
from nnpcalc.train.predict import evaluate
from nnpcalc.train.widen import doubled
from nnpcalc.verify import verify
from nnpcalc.weights import load_card, load_potential, save_potential
from train_corpus import CONFIG, settings, silent, write_corpus


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A corpus, and a model trained on it for an epoch."""
    directory = tmp_path_factory.mktemp("initial")
    write_corpus(directory)
    (directory / "tiny.toml").write_text(CONFIG.replace("epochs = 6", "epochs = 2"))
    train(directory / "tiny.toml", data=directory, output=directory, threads=1)
    return directory


def configuration(workplace, **training):
    model = str(workplace / "tiny" / "model" / "tiny")
    return settings(workplace, initial=model, **training)


def errors_of(trainer):
    return evaluate(trainer.fast, trainer.train, trainer.train_pairs, trainer.device)


def test_the_weights_are_the_starting_point(workplace, tmp_path):
    trainer = Trainer(configuration(workplace, keep_baseline=True), tmp_path)
    initial = load_potential(workplace / "tiny" / "model" / "tiny")
    state = trainer.potential.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in initial.state_dict().items())
    assert trainer.baseline == baseline_of(initial)
    assert all(p.requires_grad for p in trainer.parameters)
    before = trainer.validate()
    trainer.run(silent)
    assert trainer.step > 0 and before  # it trains


def test_the_baseline_follows_a_shift_of_the_labels(workplace, tmp_path):
    """Other atomic and state energies, as another level of theory has them, are absorbed."""
    with np.load(workplace / "tiny.npz") as data:
        arrays = dict(data)
    arrays["energy"] = arrays["energy"] + 7.0 * arrays["n_atoms"] - 3.0 * arrays["charge"]
    np.savez(tmp_path / "shifted.npz", **arrays)
    config = configuration(workplace)
    data = dataclasses.replace(config.data, files=(str(tmp_path / "shifted.npz"),))
    shifted = dataclasses.replace(config, data=data)
    kept = dataclasses.replace(
        shifted, training=dataclasses.replace(shifted.training, keep_baseline=True)
    )
    original = Trainer(config, tmp_path / "original")
    refitted = Trainer(shifted, tmp_path / "refitted")
    unchanged = Trainer(kept, tmp_path / "kept")
    energy = [np.abs(errors_of(t).energy).mean() for t in (original, refitted, unchanged)]
    print("mean |dE| / eV: original, refitted, kept", energy)
    assert energy[1] == pytest.approx(energy[0], rel=1e-3)
    assert energy[2] > 10.0 * energy[0]
    change = refitted.baseline.atomic_energies[1] - original.baseline.atomic_energies[1]
    assert change == pytest.approx(7.0, abs=1e-6)


def test_a_fine_tuning_goes_on_where_it_stopped(workplace, tmp_path):
    whole = Trainer(configuration(workplace, epochs=2), tmp_path / "whole")
    whole.run(silent)
    part = Trainer(configuration(workplace, epochs=2), tmp_path / "part")
    part.run(silent, until=0.0)
    resumed = Trainer(configuration(workplace, epochs=2), tmp_path / "part")
    assert resumed.step == 1
    resumed.run(silent)
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"channels": 6}}, "has channels = 8, .* asks for 6: its weights do not fit"),
        ({"options": {"colour": 6}}, "has colour = None"),
        ({"architecture": "schnet"}, "has architecture = 'tensornet', .* asks for 'schnet'"),
        ({"zbl_reach": 0.0}, r"has zbl_reach = 0\.8"),
        ({"state_energy": False}, "has an energy of the state: set state_energy = true"),
    ],
)
def test_another_architecture_is_refused(workplace, tmp_path, changes, message):
    config = configuration(workplace)
    model = dataclasses.replace(config.model, **changes)
    with pytest.raises(ValueError, match=message):
        Trainer(dataclasses.replace(config, model=model), tmp_path)


@pytest.fixture(scope="module")
def further(workplace):
    """A model trained on from that of the workplace, its atomic energies kept."""
    text = CONFIG.replace("epochs = 6", "epochs = 1").replace('name = "tiny"', 'name = "further"')
    initial = workplace / "tiny" / "model" / "tiny"
    text = text.replace("[training]", f'[training]\ninitial = "{initial}"\nkeep_baseline = true')
    (workplace / "further.toml").write_text(text)
    train(workplace / "further.toml", data=workplace, output=workplace, threads=1)
    return str(workplace / "further" / "model" / "further")


def test_a_training_starts_at_the_mean_of_weights(workplace, tmp_path, further):
    config = configuration(workplace, initial_average=(further,), keep_baseline=True)
    trainer = Trainer(config, tmp_path)
    one = dict(load_potential(workplace / "tiny" / "model" / "tiny").named_parameters())
    other = dict(load_potential(further).named_parameters())
    apart = 0.0
    for name, value in trainer.potential.named_parameters():
        mean = 0.5 * (one[name].double() + other[name].double())
        torch.testing.assert_close(value.detach(), mean.float(), rtol=0, atol=0)
        apart = max(apart, float((one[name] - other[name]).detach().abs().max()))
    assert apart > 1e-3  # they are two models
    trainer.run(silent)
    assert trainer.step > 0


def test_the_mean_itself_becomes_a_model_without_training(workplace, tmp_path, further, capsys):
    """With no epochs: validated and saved with a card and golden values, once more if asked."""
    first = workplace / "tiny" / "model" / "tiny"
    text = CONFIG.replace("epochs = 6", "epochs = 0").replace('name = "tiny"', 'name = "mean"')
    start = f'initial = "{first}"\ninitial_average = ["{further}"]\nkeep_baseline = true'
    (tmp_path / "mean.toml").write_text(text.replace("[training]", f"[training]\n{start}"))
    for _ in range(2):
        train(tmp_path / "mean.toml", data=workplace, output=tmp_path, threads=1)
        path = tmp_path / "mean" / "model" / "mean"
        one, other, mean = (
            dict(load_potential(m).named_parameters()) for m in (first, further, path)
        )
        for name, value in mean.items():
            expected = 0.5 * (one[name].detach().double() + other[name].detach().double())
            torch.testing.assert_close(value.detach(), expected.float(), rtol=0, atol=0)
    training = load_card(path)["training"]
    assert (training["steps"], training["epochs_done"], training["epochs"]) == (0, 0, 0)
    assert (
        capsys.readouterr().out.count("epoch 0: validation ") == 1
    )  # validated once, read back then
    assert all(check.passed for check in verify(path))
    assert len((tmp_path / "mean" / "log.csv").read_text().splitlines()) == 2
    assert not (tmp_path / "mean" / "training.png").exists()  # there is no curve


def test_another_initial_takes_the_place_of_a_mean(workplace, tmp_path, further):
    text = CONFIG.replace("epochs = 6", "epochs = 1")
    missing = 'initial = "no/where"\ninitial_average = ["no/where/else"]'
    (tmp_path / "tiny.toml").write_text(text.replace("[training]", f"[training]\n{missing}"))
    train(tmp_path / "tiny.toml", data=workplace, output=tmp_path, threads=1, initial=further)
    training = load_card(tmp_path / "tiny" / "model" / "tiny")["training"]
    assert training["initial"] == further
    assert training["initial_average"] == []


def test_a_mean_of_models_that_differ_otherwise_is_refused(workplace, tmp_path, further):
    shifted = load_potential(further)
    energies = shifted.terms[0].picoelectronvolts
    energies += energies.ne(0).to(energies.dtype)
    card = {
        key: load_card(further)[key] for key in ("charges", "multiplicities", "reference_method")
    }
    save_potential(shifted, tmp_path / "shifted", card)
    for model, message in (
        ("tensornet-spice", r"'tensornet-spice' has config = .* has .*: the mean of their weights"),
        (str(tmp_path / "shifted"), "different .*picoelectronvolts, such as atomic energies"),
        (str(workplace / "tiny" / "model" / "tiny" / "model.pt"), "TorchScript|trust"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(configuration(workplace, initial_average=(model,)), tmp_path)
    with pytest.raises(ValueError, match="initial_average needs initial"):
        settings(workplace, initial_average=(further,))


def test_a_wider_network_begins_as_the_same_function():
    """And its copies of a channel do not stay copies: they get different gradients."""
    narrow = load_potential("tensornet-spice", dtype=torch.float64)
    core: Any = narrow.core
    wide = TensorNet(dataclasses.replace(core.config, channels=2 * core.config.channels))
    wide.to(torch.float64).load_state_dict(doubled(core, wide, seed=1))
    potential = Potential(wide, tuple(narrow.terms), narrow.scale)
    ions = molecule("CH3CH2O", info={"charge": -1}), molecule("CH3CONH2", info={"charge": 2})
    batch = AtomsBatch.from_atoms([molecule("CH3CH2OH"), *ions])
    one, other = narrow.evaluate(batch), potential.evaluate(batch)
    torch.testing.assert_close(other.energy, one.energy, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.forces, one.forces, rtol=0, atol=1e-9)
    arguments = inputs(batch, neighbor_list(batch, core.cutoff))
    out = potential(*arguments, compute_stress=False, create_graph=True)
    out["energy"].sum().backward()
    gradient = wide.layers[0].mix_after.weight.grad
    first, second = gradient.unflatten(1, (2, -1)).unbind(1)
    assert float((first - second).abs().max()) > 1e-2 * float(first.abs().max())


def test_a_training_goes_on_with_twice_the_channels(workplace, tmp_path):
    config = configuration(workplace, keep_baseline=True)
    narrow = Trainer(config, tmp_path / "narrow")
    options = {**config.model.options, "channels": 16}
    model = dataclasses.replace(config.model, options=options)
    wide = Trainer(dataclasses.replace(config, model=model), tmp_path / "wide")
    before = errors_of(narrow).energy
    np.testing.assert_allclose(errors_of(wide).energy, before, rtol=0, atol=1e-4)
    wide.run(silent)
    assert wide.potential.core.config.channels == 16
    assert not np.array_equal(errors_of(wide).energy, before)


def test_a_new_state_embedding_starts_from_nothing(workplace, tmp_path):
    """The shipped spin model is made like this: from a model that knows charges only."""
    config = configuration(workplace, keep_baseline=True)
    options = {**config.model.options, "state_embedding": ["charge", "unpaired_electrons"]}
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, options=options))
    before = errors_of(Trainer(config, tmp_path / "same"))
    trainer = Trainer(wider, tmp_path / "wider")
    assert set(trainer.potential.core.conditions_on) >= {"charge", "multiplicity"}
    np.testing.assert_allclose(errors_of(trainer).energy, before.energy, atol=1e-5)
    values = [p for name, p in trainer.potential.named_parameters() if name.endswith(".value")]
    assert len(values) == 2 and not any(value.any() for value in values)
    trainer.run(silent)
    assert all(value.any() for value in values)


def test_options_may_be_left_out(workplace, tmp_path):
    config = configuration(workplace)
    model = dataclasses.replace(config.model, options={})
    trainer = Trainer(dataclasses.replace(config, model=model), tmp_path)
    assert trainer.potential.core.config.channels == 8


def test_an_unknown_element_is_refused(workplace, tmp_path):
    with np.load(workplace / "tiny.npz") as data:
        arrays = dict(data)
    arrays["numbers"][0] = 2
    arrays["multiplicity"][0] = 3 - arrays["multiplicity"][0]  # one electron more
    np.savez(tmp_path / "helium.npz", **arrays)
    config = configuration(workplace)
    data = dataclasses.replace(config.data, files=(str(tmp_path / "helium.npz"),))
    with pytest.raises(ValueError, match="does not know the elements He of the training data"):
        Trainer(dataclasses.replace(config, data=data), tmp_path / "run")


def test_a_torchscript_file_is_refused(workplace, tmp_path):
    model = workplace / "tiny" / "model" / "tiny" / "model.pt"
    config = settings(workplace, initial=str(model))
    with pytest.raises(ValueError, match=r"TorchScript|trust"):
        Trainer(config, tmp_path)
