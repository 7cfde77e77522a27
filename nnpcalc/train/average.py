"""The mean of the weights of several models: a starting point between trainings of one network.

Trainings that share a beginning lie in one basin, and the mean of their weights is a model as good
as either; what each has learned of its own is half forgotten and soon back: Wortsman et al., Model
soups, arXiv 2203.05482.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from nnpcalc.cards import describe
from nnpcalc.potential import Potential


def averaged_weights(potentials: Sequence[Potential], names: Sequence[str]) -> Potential:
    """A copy of the first potential with the mean of the weights of all.

    Args:
        potentials: models of one architecture with the same options, terms and atomic energies.
        names: what to call them in errors.

    Raises:
        ValueError: one differs from the first in more than its weights.
    """
    mean = copy.deepcopy(potentials[0])
    first = describe(potentials[0])
    constants = dict(potentials[0].named_buffers())
    for other, name in zip(potentials[1:], names[1:], strict=True):
        card = describe(other)
        for key in ("architecture", "config", "terms", "scale"):
            if card[key] != first[key]:
                raise ValueError(
                    f"{name!r} has {key} = {card[key]!r}, {names[0]!r} has {first[key]!r}: the "
                    "mean of their weights is no model"
                )
        for buffer, value in other.named_buffers():
            if not torch.equal(value, constants[buffer]):
                raise ValueError(
                    f"{name!r} and {names[0]!r} have different {buffer}, such as atomic energies: "
                    "train one from the other with keep_baseline = true"
                )
    with torch.no_grad():
        for parameter, *values in zip(
            mean.parameters(), *(p.parameters() for p in potentials), strict=True
        ):
            parameter.copy_(torch.stack([v.double() for v in values]).mean(dim=0))
    return mean
