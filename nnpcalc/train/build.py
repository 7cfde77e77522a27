"""The potential of a training run: new, or from the weights of another model."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nnpcalc.cards import describe
from nnpcalc.factory import build_potential
from nnpcalc.kernels.fused import FUSED, fused_for_inference
from nnpcalc.models.tensornet import TensorNet
from nnpcalc.potential import Potential
from nnpcalc.state import element_symbol
from nnpcalc.terms import D3, ZBL, AtomicEnergies, Coulomb, StateEnergy
from nnpcalc.train.average import averaged_weights
from nnpcalc.train.checks import formula
from nnpcalc.train.config import TERMS, Config
from nnpcalc.train.data import Baseline, Dataset, fit_baseline, index_pairs
from nnpcalc.train.predict import evaluate
from nnpcalc.train.widen import doubled
from nnpcalc.weights import load_potential

#: The baseline of fine-tuning is refitted on so many conformers, and on some of every element and
#: state if those are missing among them.
REFIT_CONFORMERS = 5000
REFIT_OF_EACH = 50


def build(
    config: Config, baseline: Baseline, further: Sequence[nn.Module] | None = None
) -> Potential:
    """The potential of a configuration, with random weights.

    Args:
        config: the run.
        baseline: atomic energies and the energy of a state.
        further: the terms of the section [terms], if they are there already.

    Raises:
        ValueError: the architecture does not have an option, or a term does not have a setting or
            needs partial charges that the architecture does not give.
    """
    options = dict(config.model.options)
    options.setdefault("elements", sorted(baseline.atomic_energies))
    terms: list[Any] = [AtomicEnergies(baseline.atomic_energies)]
    if config.model.state_energy and any(baseline.state):
        terms.append(StateEnergy(*baseline.state))
    if config.model.zbl_reach > 0.0:
        terms.append(ZBL(config.model.zbl_reach))
    if further is None:
        terms += [{"name": name, **settings} for name, settings in config.terms.items()]
    else:
        terms += further
    return build_potential(config.model.architecture, terms=terms, **options)


def check_given_charges(core: Any, dataset: Dataset) -> None:
    """Refuse atoms without the partial charge that a core network is told.

    Raises:
        ValueError: says how many atoms, and in which conformer the first is.
    """
    told = np.isfinite(dataset.given_charges)
    if "partial_charges" in core.conditions_on and not told.all():
        row = int(np.searchsorted(dataset.offsets, np.flatnonzero(~told)[0], side="right")) - 1
        raise ValueError(
            f"the network is told partial charges, but {(~told).sum()} of {told.size} atoms have "
            f"none, the first in conformer {row}: give npz files an array given_charges [A]"
        )


def check_states(core: Any, dataset: Dataset) -> None:
    """Refuse conformers without what a core network needs, or in states it cannot tell from others.

    Such a core has `charges` or `multiplicities`, as `ANI2x`. Other networks that know no state may
    learn of mixed ones: it is then their business.

    Raises:
        ValueError: says how many conformers, which is the first, and what to do.
    """
    check_given_charges(core, dataset)
    wrong = np.zeros(len(dataset), dtype=bool)
    lacking = []
    for name, kind, values in (
        ("charge", "charges", dataset.charge),
        ("unpaired_electrons", "multiplicities", dataset.multiplicity),
    ):
        known = getattr(core, kind, ())
        foreign = ~np.isin(values, known) if known else np.zeros_like(wrong)
        wrong |= foreign
        lacking += [name] if foreign.any() else []
    if not lacking:
        return
    row = int(np.flatnonzero(wrong)[0])
    numbers = dataset.numbers[dataset.offsets[row] : dataset.offsets[row + 1]]
    state = f"charge {dataset.charge[row]:+d}, multiplicity {dataset.multiplicity[row]}"
    raise ValueError(
        f"{wrong.sum()} of {len(dataset)} conformers are charged or have unpaired electrons, which "
        f"{type(core).__name__} does not see. The first is number {row}: {formula(numbers)}, "
        f"{state}. Leave them out, or set [model] state_embedding = {json.dumps(lacking)}"
    )


def accelerated(potential: Potential, n_knots: int, frozen: bool = False) -> Potential:
    """A potential with the same parameters on the fast path, where its core has one.

    Args:
        potential: the model.
        n_knots: size of the radial table; 0 leaves the model as it is.
        frozen: the parameters will not change, so that one table serves for good.
    """
    if not n_knots or potential.device.type != "cpu" or type(potential.core) not in FUSED:
        return potential
    if frozen:
        core = fused_for_inference(potential.core, n_knots)
    else:
        core = FUSED[type(potential.core)](potential.core, n_knots)
    return Potential(core, tuple(potential.terms), potential.scale)


def load_initial(config: Config) -> tuple[Config, Potential]:
    """The model to start from, and the configuration completed by its architecture and options.

    Raises:
        ValueError: the model cannot be loaded, or the configuration asks for another one.
    """
    names = [config.training.initial, *config.training.initial_average]
    models = []
    for name in names:
        model = load_potential(name).requires_grad_(False)
        if not isinstance(model, Potential) or not hasattr(model.core, "config"):
            raise ValueError(f"initial: {name!r} is a TorchScript file: give the model's directory")
        models.append(model)
    initial, name = averaged_weights(models, names), names[0]
    card = describe(initial)
    terms = {term["name"]: term for term in card["terms"]}
    has: dict[str, Any] = {
        "architecture": card["architecture"],
        "zbl_reach": terms.get("zbl", {}).get("reach", 0.0),
        **card["config"],
    }
    asked: dict[str, Any] = {
        **{k: getattr(config.model, k) for k in ("architecture", "zbl_reach") if config.asks(k)},
        **{k: list(v) if isinstance(v, tuple) else v for k, v in config.model.options.items()},
    }
    for key, value in asked.items():
        if key == "state_embedding" and value[: len(has.get(key, []))] == list(has.get(key, [])):
            continue  # a state that the initial model does not know is learned
        if key == "channels" and has["architecture"] == "tensornet" and value == 2 * has[key]:
            continue  # each channel twice
        if key not in has or has[key] != value:
            raise ValueError(
                f"initial = {name!r} has {key} = {has.get(key)!r}, [model] asks for {value!r}: its "
                "weights do not fit; leave the option out, or train from scratch"
            )
    further = {term: terms[term] for term in TERMS if term in terms}
    further = {t: {k: v for k, v in of.items() if k != "name"} for t, of in further.items()}
    for term, settings in config.terms.items():
        if term not in further or {**further[term], **settings} != further[term]:
            raise ValueError(
                f"initial = {name!r} has {further.get(term, 'no term')} where [terms] asks for "
                f"{term} = {settings}: leave [terms] out, or train from scratch"
            )
    foreign = sorted(set(terms) - {"atomic_energies", "state_energy", "zbl", *TERMS})
    if foreign:
        raise ValueError(f"initial = {name!r} has the term {foreign[0]}, which cannot be trained")
    if "state_energy" in terms and not config.model.state_energy:
        raise ValueError(f"initial = {name!r} has an energy of the state: set state_energy = true")
    options = {**card["config"], **config.model.options}
    completed = replace(
        config.model,
        architecture=has["architecture"],
        zbl_reach=has["zbl_reach"],
        options=options,
    )
    return replace(config, model=completed, terms=further), initial


def build_from(initial: Potential, config: Config, baseline: Baseline) -> Potential:
    """The potential of a configuration with the weights of another one's core.

    A state embedding that the other one lacks adds nothing before it is trained, and channels that
    it lacks are copies.
    """
    further = [copy.deepcopy(t) for t in initial.terms if isinstance(t, (Coulomb, D3))]
    potential = build(config, baseline, further)
    narrow: Any = initial.core
    wide: Any = potential.core
    weights = narrow.state_dict()
    if isinstance(narrow, TensorNet) and wide.config.channels > narrow.config.channels:
        weights = doubled(narrow, wide, config.training.seed)
    result = potential.core.load_state_dict(weights, strict=False)
    new = [name for name in result.missing_keys if "state" in name.split(".")]
    if result.unexpected_keys or len(new) < len(result.missing_keys):
        raise ValueError(
            f"initial = {config.training.initial!r} has other parameters than the architecture: "
            f"{', '.join([*result.unexpected_keys, *result.missing_keys])}"
        )
    with torch.no_grad():
        for name, parameter in potential.core.named_parameters():
            if name in new and name.endswith(".value"):
                parameter.zero_()
    return Potential(potential.core, tuple(potential.terms), initial.scale)


def baseline_of(potential: Potential) -> Baseline:
    """The atomic and state energies among the terms of a potential."""
    energies: dict[int, float] = {}
    state = (0.0, 0.0, 0.0)
    for term in potential.terms:
        if isinstance(term, AtomicEnergies):
            table = term.picoelectronvolts.cpu().numpy() * term.unit
            energies = {int(z): float(table[z]) for z in potential.elements}
        elif isinstance(term, StateEnergy):
            state = (term.charge, term.charge_squared, term.unpaired_electrons)
    return Baseline(energies, state)


def initial_baseline(initial: Potential, config: Config, dataset: Dataset) -> Baseline:
    """The baseline of fine-tuning: that of the initial model, shifted to the new labels.

    The shift is a least-squares fit, of smallest norm, to the energies that the initial model as a
    whole leaves over: another level of theory differs by atomic energies first of all.

    Raises:
        ValueError: the data hold an element that the model does not know.
    """
    unknown = sorted(set(np.unique(dataset.numbers).tolist()) - set(initial.elements))
    if unknown:
        raise ValueError(
            f"initial = {config.training.initial!r} does not know the elements "
            f"{', '.join(map(element_symbol, unknown))} of the training data: leave them out, or "
            "train from scratch"
        )
    before = baseline_of(initial)
    if config.training.keep_baseline:
        return before
    sample = dataset.take(_sample(dataset, config.training.seed))
    fast = accelerated(initial, max(config.training.knots, 512), frozen=True)
    errors = evaluate(fast, sample, index_pairs(sample, initial.cutoff), torch.device("cpu"))
    left = replace(sample, energy=-errors.energy)
    shift = fit_baseline(left, state=config.model.state_energy)
    energies = {
        z: before.atomic_energies.get(z, 0.0) + shift.atomic_energies.get(z, 0.0)
        for z in initial.elements
    }
    a, b, c = (old + new for old, new in zip(before.state, shift.state, strict=True))
    return Baseline(energies, (a, b, c))


def _sample(dataset: Dataset, seed: int) -> np.ndarray:
    """Rows of random conformers, and some of every element and every state."""
    order: Any = np.random.default_rng(seed).permutation(len(dataset))
    chosen = [order[:REFIT_CONFORMERS]]
    system = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    for z in np.unique(dataset.numbers):
        has = np.zeros(len(dataset), dtype=bool)
        has[system[dataset.numbers == z]] = True
        chosen.append(order[has[order]][:REFIT_OF_EACH])
    for values in (dataset.charge, dataset.multiplicity):
        chosen += [order[values[order] == v][:REFIT_OF_EACH] for v in np.unique(values)]
    return np.unique(np.concatenate(chosen))
