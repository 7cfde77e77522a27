"""The format of torchmd-net 3's TensorNet checkpoints: names, shapes and constants."""

from __future__ import annotations

import torch
from torch import Tensor

from nnpcalc.layers import ExpNormalBasis
from nnpcalc.models.tensornet import TensorNetConfig

CHARGE_WEIGHT = 0.1  # lambda of the total charge, a constant of torchmd-net's code
BODY = "representation_model."
EMBEDDING = f"{BODY}tensor_embedding."
HEAD = "output_model.output_network.layers."
BASIS = f"{BODY}distance_expansion."
#: A periodic cell that was given as an option; the cell of the atoms takes its place.
BOX = f"{BODY}distance.box"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or says something nnpcalc has no counterpart for."""


def parameter_names(config: TensorNetConfig) -> dict[str, list[str]]:
    """Name of each parameter in `TensorNet` -> names in torchmd-net, stacked in this order."""

    def linear(ours: str, theirs: str) -> dict[str, list[str]]:
        return {f"{ours}.{kind}": [f"{theirs}.{kind}"] for kind in ("weight", "bias")}

    names = {
        "embedding.element.weight": [f"{EMBEDDING}emb.weight"],
        "embedding.mix.weight": [f"{EMBEDDING}linears_tensor.{c}.weight" for c in range(3)],
    }
    for kind in ("weight", "bias"):
        projections = [f"{EMBEDDING}distance_proj{c}.{kind}" for c in (1, 2, 3)]
        names[f"embedding.radial.{kind}"] = projections
    names |= linear("embedding.pair", f"{EMBEDDING}emb2")
    names |= linear("embedding.norm", f"{EMBEDDING}init_norm")
    for k in range(2):
        names |= linear(f"embedding.scalars.{k}", f"{EMBEDDING}linears_scalar.{k}")
    for layer in range(config.layers):
        theirs = f"{BODY}layers.{layer}."
        for k in range(3):
            names |= linear(f"layers.{layer}.radial.{k}", f"{theirs}linears_scalar.{k}")
        for ours, first in (("mix_before", 0), ("mix_after", 3)):
            names[f"layers.{layer}.{ours}.weight"] = [
                f"{theirs}linears_tensor.{first + c}.weight" for c in range(3)
            ]
    names |= linear("norm", f"{BODY}out_norm")
    names |= linear("linear", f"{BODY}linear")
    for k in range(2):
        names |= linear(f"output.{k}", f"{HEAD}{2 * k}")
    return names


def radial_basis(config: TensorNetConfig) -> tuple[Tensor, Tensor]:
    """Centres and widths [K] of the radial basis, float64: what torchmd-net keeps as buffers."""
    basis = ExpNormalBasis(config.radial_functions, config.cutoff)
    means = basis.start + basis.step * torch.arange(config.radial_functions, dtype=torch.float64)
    return means, torch.full_like(means, basis.beta)


def mirror(tensors: dict[str, Tensor], config: TensorNetConfig) -> dict[str, Tensor]:
    """Change an SO(3) network between torchmd-net's two senses of rotation.

    The Warp kernels that torchmd-net runs since 3.0 build the antisymmetric part of the embedding
    with the opposite sign of its earlier releases and its plain torch operations. An O(3) network
    does not notice; an SO(3) network gives the energies of the mirror image. The sign of the
    projection f_A alone makes up for it.
    """
    if config.equivariance == "O(3)":
        return tensors
    turned = tuple(f"{EMBEDDING}distance_proj2.{kind}" for kind in ("weight", "bias"))
    return {name: -tensor if name in turned else tensor for name, tensor in tensors.items()}
