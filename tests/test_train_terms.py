"""Training with electrostatics, dispersion and partial charges; states that a core cannot see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnpcalc.factory
from nnpcalc.models import build_core
from nnpcalc.terms import D3, Coulomb, D3Tables
from nnpcalc.train import Config, Trainer, read_config
from nnpcalc.train.build import build, check_states
from nnpcalc.train.command import finish
from nnpcalc.train.data import Baseline, Dataset, collate, read_corpus
from nnpcalc.train.predict import predict
from nnpcalc.units import COULOMB
from nnpcalc.weights import load_potential
from train_corpus import comparable, settings, silent, write_corpus

TERMS: dict[str, dict[str, Any]] = {
    "coulomb": {"damping": "exponential", "radius": 2.0},
    "d3": {"s8": 0.3908, "a1": 0.566, "a2": 3.128, "cutoff": 8.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "aimnet2": {
        "channels": 4, "radial_functions": 6, "vector_combinations": 2, "layers": 2,
        "hidden": (16,), "last_hidden": (16,), "features": 8, "readout": (8,), "cutoff": 4.0,
    },
    "physnet": {"channels": 8, "layers": 2, "radial_functions": 8, "cutoff": 4.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("terms")
    write_corpus(directory)
    return directory


@pytest.fixture(autouse=True)
def _tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispersion data of one size for all elements, in place of those of an optional package."""

    def invented(elements: tuple[int, ...]) -> D3Tables:
        n = len(elements)
        coordination = torch.tensor([[0.0, 1.0, -1.0, -1.0, -1.0]], dtype=torch.float64)
        known = coordination[0] >= 0.0
        c6 = 6.0 * (known[:, None] & known[None, :]).to(torch.float64)
        return D3Tables(
            c6.expand(n, n, 5, 5), coordination.expand(n, 5), torch.full((n,), 2.0), torch.ones(n)
        )

    monkeypatch.setattr(nnpcalc.factory, "reference_tables", invented)


def configuration(workplace: Path, architecture: str, **training: Any) -> Config:
    config = settings(workplace, knots=0, **{"charge_weight": 1.0, **training})
    model = dataclasses.replace(
        config.model, architecture=architecture, options=MODELS.get(architecture, {})
    )
    return dataclasses.replace(config, model=model, terms=TERMS)


def test_terms_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'name = "a"\n[model]\narchitecture = "physnet"\nchannels = 8\n'
        '[terms]\ncoulomb = { damping = "shielded", radius = 5 }\n'
        "[terms.d3]\ns8 = 0.4\na1 = 0.6\na2 = 3\n"
    )
    potential = build(read_config(path), Baseline({1: -13.0, 8: -2000.0}, (0.0, 0.0, 0.0)))
    coulomb, d3 = list(potential.terms)[-2:]
    assert isinstance(coulomb, Coulomb) and (coulomb.damping, coulomb.radius) == ("shielded", 5.0)
    assert isinstance(d3, D3) and (d3.s8, d3.a2, d3.elements) == (0.4, 3.0, (1, 8))
    assert potential.cutoff == 15.0  # of D3


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("dispersion = {}", r"\[terms\] has no 'dispersion'; it takes coulomb, d3"),
        ("zbl = { reach = 0.9 }", r"ZBL is \[model\] zbl_reach"),
        ("d3 = true", r"d3 must be a table of settings, not True: d3 = \{\}"),
        ("d3 = {}", "the term d3 needs s8, a1, a2"),
        ("coulomb = { color = 1 }", "the term coulomb has no setting 'color'"),
        ("coulomb = {}", "a Coulomb term needs partial charges, which tensornet does not have"),
    ],
)
def test_terms_that_cannot_be(tmp_path: Path, terms: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'name = "a"\n[terms]\n{terms}\n')
    with pytest.raises(ValueError, match=message):
        build(read_config(path), Baseline({1: -13.0}, (0.0, 0.0, 0.0)))


@pytest.mark.parametrize("architecture", sorted(MODELS))
def test_the_loss_falls_and_a_run_goes_on_to_the_bit(
    workplace: Path, tmp_path: Path, architecture: str
) -> None:
    config = configuration(workplace, architecture, epochs=8, charge_weight=5.0)
    whole = Trainer(config, tmp_path / "whole")
    whole.run(silent)
    for key in ("train_loss", "charge_mae_me", "force_mae_meV_per_A"):
        first, last = whole.log[0][key], whole.log[-1][key]
        print(f"{architecture}: {key} {first:.4g} -> {last:.4g}")
        assert last < (0.8 if key == "train_loss" else 0.95) * first

    part = Trainer(config, tmp_path / "part")
    for rows in part.epoch_batches(0)[:2]:
        part.update(rows)
    part.save()
    part.update(part.epoch_batches(0)[2])  # lost, as if killed
    resumed = Trainer(config, tmp_path / "part")
    assert resumed.step == 2
    resumed.run(silent)
    assert comparable(resumed.log) == comparable(whole.log)
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)


def test_the_coulomb_energy_is_part_of_what_is_trained(workplace: Path, tmp_path: Path) -> None:
    config = configuration(workplace, "aimnet2")
    energy, charges = [], torch.empty(0)
    for terms in ({"coulomb": {}}, {}):
        trainer = Trainer(dataclasses.replace(config, terms=terms), tmp_path / str(len(terms)))
        batch = collate(trainer.train, trainer.train_pairs, np.arange(8))
        output = predict(trainer.fast, batch, create_graph=True)
        energy.append(output["energy"].detach())
        charges = output["charges"].detach().double()
    d = torch.cdist(batch.positions.double(), batch.positions.double())
    pairs = (batch.system[:, None] == batch.system) & (d > 0.0)
    each = 0.5 * COULOMB * torch.where(pairs, charges[:, None] * charges / d, 0.0).sum(1)
    expected = torch.zeros(8, dtype=torch.float64).index_add(0, batch.system, each)
    assert float(expected.abs().min()) > 1e-4
    assert torch.allclose(energy[0] - energy[1], expected, atol=1e-6)


def test_a_model_with_terms_is_saved_and_fine_tuned(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(configuration(workplace, "physnet", epochs=1), tmp_path / "run")
    trainer.run(silent)
    finish(trainer, silent)
    path = tmp_path / "run" / "model" / "tiny"

    def missing(_: object) -> D3Tables:
        raise ImportError("pip install tad-dftd3")

    monkeypatch.setattr(nnpcalc.factory, "reference_tables", missing)
    loaded = load_potential(path)
    assert [type(term) for term in list(loaded.terms)[-2:]] == [Coulomb, D3]
    config = configuration(workplace, "physnet", initial=str(path), keep_baseline=True)
    for terms in ({}, {"coulomb": TERMS["coulomb"]}):  # what is left out is as it was
        tuned = Trainer(dataclasses.replace(config, terms=terms), tmp_path / f"tuned{len(terms)}")
        state = tuned.potential.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert tuned.config.terms["d3"]["s8"] == 0.3908
        tuned.update(tuned.epoch_batches(0)[0])
    other = dataclasses.replace(config, terms={"coulomb": {"radius": 3.0}})
    with pytest.raises(ValueError, match=r"'radius': 2\.0.* where \[terms\] asks for coulomb"):
        Trainer(other, tmp_path / "other")


# --- states that a core cannot see ---------------------------------------------------------------


def with_states(workplace: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Dataset:
    dataset, _ = read_corpus([workplace / "tiny.npz"])
    m = len(dataset)
    arrays = {"charge": np.zeros(m, dtype=int), "multiplicity": np.ones(m, dtype=int)}
    change(arrays)
    return dataclasses.replace(dataset, **arrays)


def test_charged_structures_for_a_core_that_knows_no_charge(workplace: Path) -> None:
    def ions(arrays: dict[str, np.ndarray]) -> None:
        arrays["charge"][[3, 7]] = -1, 1

    dataset = with_states(workplace, ions)
    small = {"elements": (1,), "hidden": ((4,),)}
    with pytest.raises(ValueError, match="does not see") as error:
        check_states(build_core("ani2x", small), dataset)
    formula = f"H{dataset.n_atoms[3]}"
    assert str(error.value) == (
        "2 of 100 conformers are charged or have unpaired electrons, which ANI2x does not see. The "
        f"first is number 3: {formula}, charge -1, multiplicity 1. Leave them out, or set [model] "
        'state_embedding = ["charge"]'
    )
    check_states(build_core("ani2x", {**small, "state_embedding": ["charge"]}), dataset)
    check_states(build_core("schnet", {"channels": 4}), dataset)  # may be state-blind on purpose
    check_states(build_core("ani2x", small), with_states(workplace, lambda _: None))


def test_radicals_for_a_core_that_knows_no_spin(workplace: Path) -> None:
    def radical(arrays: dict[str, np.ndarray]) -> None:
        arrays["multiplicity"][5] = 2

    dataset = with_states(workplace, radical)
    small = {"elements": (1,), "hidden": ((4,),), "state_embedding": ["charge"]}
    with pytest.raises(ValueError, match=r"^1 of 100 .* number 5: .* \[\"unpaired_electrons\"\]$"):
        check_states(build_core("ani2x", small), dataset)


def test_training_refuses_states_that_the_core_cannot_see(workplace: Path, tmp_path: Path) -> None:
    config = configuration(workplace, "ani2x", charge_weight=0.0)
    model = dataclasses.replace(config.model, options={"hidden": ((4,),)})
    config = dataclasses.replace(config, model=model, terms={})
    with pytest.raises(ValueError, match=r"conformers are charged .* ANI2x does not see"):
        Trainer(config, tmp_path / "blind")
    options = {**model.options, "state_embedding": ("charge", "unpaired_electrons")}
    seeing = dataclasses.replace(model, options=options)
    Trainer(dataclasses.replace(config, model=seeing), tmp_path / "seeing")
