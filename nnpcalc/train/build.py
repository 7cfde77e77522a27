"""The potential of a training run: new, or from the weights of another model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nnpcalc.cards import describe
from nnpcalc.kernels.fused import FUSED, fused_for_inference
from nnpcalc.models import build_core
from nnpcalc.potential import Potential
from nnpcalc.state import element_symbol
from nnpcalc.terms import ZBL, AtomicEnergies, StateEnergy
from nnpcalc.train.config import Config
from nnpcalc.train.data import Baseline, Dataset, fit_baseline, index_pairs
from nnpcalc.train.predict import evaluate
from nnpcalc.weights import load_potential

#: The baseline of fine-tuning is refitted on so many conformers, and on some of every element and
#: state if those are missing among them.
REFIT_CONFORMERS = 5000
REFIT_OF_EACH = 50


def build(config: Config, baseline: Baseline) -> Potential:
    """The potential of a configuration, with random weights."""
    options = dict(config.model.options)
    options.setdefault("elements", sorted(baseline.atomic_energies))
    core = build_core(config.model.architecture, options)
    terms: list[nn.Module] = [AtomicEnergies(baseline.atomic_energies)]
    if config.model.state_energy and any(baseline.state):
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
    name = config.training.initial
    initial = load_potential(name).requires_grad_(False)
    if not isinstance(initial, Potential) or not hasattr(initial.core, "config"):
        raise ValueError(f"initial = {name!r} is a TorchScript file: give the model's directory")
    card = describe(initial)
    terms = {term["name"]: term for term in card["terms"]}
    has = {
        "architecture": card["architecture"],
        "zbl_reach": terms.get("zbl", {}).get("reach", 0.0),
        **card["config"],
    }
    asked = {
        "architecture": config.model.architecture,
        "zbl_reach": config.model.zbl_reach,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in config.model.options.items()},
    }
    for key, value in asked.items():
        if key not in has or has[key] != value:
            raise ValueError(
                f"initial = {name!r} has {key} = {has.get(key)!r}, [model] asks for {value!r}: its "
                "weights do not fit; leave the option out, or train from scratch"
            )
    foreign = sorted(set(terms) - {"atomic_energies", "state_energy", "zbl"})
    if foreign:
        raise ValueError(f"initial = {name!r} has the term {foreign[0]}, which cannot be trained")
    if "state_energy" in terms and not config.model.state_energy:
        raise ValueError(f"initial = {name!r} has an energy of the state: set state_energy = true")
    options = {**card["config"], **config.model.options}
    return replace(config, model=replace(config.model, options=options)), initial


def build_from(initial: Potential, config: Config, baseline: Baseline) -> Potential:
    """The potential of a configuration with the weights of another one's core."""
    potential = build(config, baseline)
    potential.core.load_state_dict(initial.core.state_dict())
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
    energies = {z: e + shift.atomic_energies.get(z, 0.0) for z, e in before.atomic_energies.items()}
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
