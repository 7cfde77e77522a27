"""TensorNet for energies and forces alone: every stage and its reverse by hand.

`FusedTensorNet` differentiates to any order, which training and Hessians need, and pays for it with
autograd's bookkeeping of some fifty nodes. Here the parameters are fixed and one derivative is
asked for, that by the pair vectors; it is written out, and autograd sees a single function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.kernels import inference_loops as loops
from nnpcalc.kernels.forms import follow_torch_threads
from nnpcalc.kernels.nodes import BY_LEFT, BY_RIGHT, FORWARD, product_coefficients, sparse
from nnpcalc.kernels.table import inference_tables
from nnpcalc.models.tensornet import TensorNet


def mixed(x: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """Channel mixing of [9, N, F] by one matrix [F, F] for each of I, A and S, from the right."""
    out = torch.empty_like(x) if out is None else out
    _, n, channels = x.shape
    rows = (n, 3 * n, 5 * n)
    parts = zip(
        x.view(-1, channels).split(rows), weights.unbind(), out.view(-1, channels).split(rows),
        strict=True,
    )  # fmt: skip
    for part, weight, target in parts:
        torch.mm(part, weight, out=target)
    return out


class Perceptron:
    """LayerNorm (if any) and linear layers with SiLU after each, but perhaps the last.

    `__call__` keeps what `reverse` needs.
    """

    def __init__(self, norm: Any, linears: list[Any], last_activated: bool) -> None:
        self.norm, self.linears, self.last_activated = norm, linears, last_activated

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        norm = self.norm
        h, mean, deviation = torch.native_layer_norm(
            x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        kept = [x, mean, deviation]
        for k, linear in enumerate(self.linears):
            h = nn.functional.linear(h, linear.weight, linear.bias)
            if k + 1 < len(self.linears) or self.last_activated:
                kept.append(h)
                h = nn.functional.silu(h)
        return h, kept

    def reverse(self, g: Tensor, kept: list[Tensor]) -> Tensor:
        x, mean, deviation, *before = kept
        if not self.last_activated:
            g = g @ self.linears[-1].weight
        activated = self.linears if self.last_activated else self.linears[:-1]
        for linear, h in zip(reversed(activated), reversed(before), strict=True):
            g = torch.ops.aten.silu_backward(g, h) @ linear.weight
        norm = self.norm
        (g, _, _) = torch.ops.aten.native_layer_norm_backward(
            g, x, norm.normalized_shape, mean, deviation, norm.weight, norm.bias,
            [True, False, False],
        )  # fmt: skip
        return g


class _Layer:
    """The parameters of an interaction layer as the loops want them."""

    def __init__(self, layer: Any, table: Tensor) -> None:
        self.module = layer
        self.table = table.numpy()
        dtype = self.table.dtype
        self.before, self.before_t = _both_ways(layer.mix_before)
        self.after, self.after_t = _both_ways(layer.mix_after)
        self.at_zero = layer.at_zero(table[None, :1]).detach()[0].numpy()
        square = product_coefficients(symmetric=True)
        product = square if layer.parity else product_coefficients(symmetric=False)
        self.product, self.by_left, self.by_right = (
            _entries(product, axes, dtype) for axes in (FORWARD, BY_LEFT, BY_RIGHT)
        )
        self.square, self.square_back = (
            _entries(square, axes, dtype) for axes in (FORWARD, BY_LEFT)
        )

    def prefactors(self, attributes: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """g [N] of the product (1 for SO(3), as published) and of the square."""
        g = self.module.prefactor(attributes).expand(attributes.shape[0], 1, 1).contiguous()
        square = g.view(-1).numpy()
        return (square if self.module.parity else np.ones_like(square)), square


def _both_ways(linear: Any) -> tuple[Tensor, Tensor]:
    """Weights that rows are multiplied with from the right, going forward and back: [3, F, F]."""
    weight = linear.weight.detach()
    return weight.transpose(1, 2).contiguous(), weight.contiguous()


def _entries(
    coefficients: Tensor, axes: tuple[int, int, int], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    entries, values = sparse(coefficients, axes)
    return entries, values.astype(dtype)


class _Pass:
    """One evaluation: the forward stages keep what their reverse needs.

    x, y and so on are arrays [9, N, F] that torch and numba share.
    """

    def __init__(self, network: TensorNetInference, arguments: tuple[Tensor, ...]) -> None:
        pairs, vectors, distances, receiver, sender, attributes = arguments
        self.network = network
        n_pairs, dtype = distances.shape[0], network.table.dtype
        self.shape = (9, receiver.shape[0], receiver.shape[1])
        self.vectors = vectors.contiguous()
        self.distances = distances.contiguous().numpy()
        w, self.slopes = np.empty((2, n_pairs, 4), dtype)
        self.angular, knot = np.empty((n_pairs, 9), dtype), np.empty(n_pairs, np.int64)
        loops.pair_geometry(
            self.vectors.numpy(), self.distances, network.grid, knot, w, self.slopes, self.angular
        )
        i, j = pairs.contiguous().numpy()
        self.pairs = (np.searchsorted(i, np.arange(receiver.shape[0] + 1)), j, knot, w)
        self.features = (receiver.contiguous(), sender.contiguous())
        self.attributes = attributes

    def new(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.vectors.dtype)

    def block(self, count: int) -> tuple[tuple[Tensor, ...], np.ndarray]:
        """Several arrays [9, N, F] at once, for torch and for numba: calls cost as much as loops
        over a small molecule."""
        tensor = torch.empty((count, *self.shape), dtype=self.vectors.dtype)
        return tensor.unbind(), tensor.numpy()

    def forward(self) -> Tensor:
        """Energies of the atoms [N]."""
        network = self.network
        receiver, sender = self.features
        summed = self.new()
        a, b = receiver.numpy(), sender.numpy()
        loops.embed_pairs(*self.pairs, network.table, a, b, self.angular, summed.numpy())
        summed[0] += network.at_zero * (receiver + sender)
        norms = summed.new_empty(self.shape[1], 3, self.shape[2])
        loops.part_norms(summed.numpy(), norms.numpy())
        scales, self.kept_scales = network.scalars(norms.sum(1))
        self.scales = scales.view(norms.shape)
        self.summed, self.mixed = summed, mixed(summed, network.mix)
        x = self.new()
        loops.scale_parts(self.mixed.numpy(), self.scales.numpy(), x.numpy())
        self.steps: list[tuple[Any, ...]] = []
        for layer in network.layers:
            x = self.interact(layer, x)
        self.x = x
        loops.part_norms(x.numpy(), norms.numpy())
        energies, self.kept_head = network.head(norms.flatten(1))
        return energies.squeeze(-1)

    def interact(self, layer: _Layer, x: Tensor) -> Tensor:
        g, g_square = layer.prefactors(self.attributes)
        inverse, inverse_c = np.empty((2, *self.shape[1:]), layer.table.dtype)
        (normal, y, _, reacted, change), arrays = self.block(5)
        normal_array, y_array, message, reacted_array, change_array = arrays
        out = self.new()
        loops.normalise(x.numpy(), normal_array, inverse)
        mixed(normal, layer.before, y)
        loops.message_pairs(*self.pairs, layer.table, y_array, message)
        loops.react(*layer.product, y_array, layer.at_zero, g, message, inverse_c, reacted_array)
        mixed(reacted, layer.after, change)
        loops.update(*layer.square, normal_array, change_array, g_square, out.numpy())
        self.steps.append((layer, g, g_square, arrays, inverse, inverse_c))
        return out

    def backward(self, upstream: Tensor) -> Tensor:
        """Derivative of sum(upstream * energies) by the pair vectors [P, 3]."""
        network = self.network
        gradient = torch.zeros_like(self.vectors)
        by_norms = network.head.reverse(upstream.unsqueeze(-1), self.kept_head)
        g = torch.zeros_like(self.x)
        loops.part_norms_reverse(
            self.x.numpy(), by_norms.view(-1, 3, self.shape[2]).numpy(), g.numpy()
        )
        for step in reversed(self.steps):
            g = self.interact_reverse(step, g, gradient)
        by_mixed, by_scales = self.new(), torch.empty_like(self.scales)
        loops.scale_parts_reverse(
            self.mixed.numpy(), self.scales.numpy(), g.numpy(), by_mixed.numpy(), by_scales.numpy()
        )
        by_norm = network.scalars.reverse(by_scales.flatten(1), self.kept_scales)
        g = mixed(by_mixed, network.mix_t)
        by_norms = by_norm.unsqueeze(1).expand(-1, 3, -1).contiguous()
        loops.part_norms_reverse(self.summed.numpy(), by_norms.numpy(), g.numpy())
        a, b = (feature.numpy() for feature in self.features)
        loops.embed_pairs_reverse(
            *self.pairs, self.slopes, network.table, a, b, self.angular, self.distances,
            g.numpy(), gradient.numpy(),
        )  # fmt: skip
        return gradient

    def interact_reverse(self, step: tuple[Any, ...], upstream: Tensor, gradient: Tensor) -> Tensor:
        """Derivative by the layer's input; that by the pair vectors is added to gradient."""
        layer, g, g_square, (normal, y, message, reacted, change), inverse, inverse_c = step
        (by_change, by_reacted, by_y, _), arrays = self.block(4)
        loops.update_reverse(*layer.square_back, change, g_square, upstream.numpy(), arrays[0])
        mixed(by_change, layer.after_t, by_reacted)
        loops.react_reverse(
            *layer.by_left, *layer.by_right, y, message, layer.at_zero, g, reacted, inverse_c,
            *arrays[1:],
        )  # fmt: skip
        loops.message_pairs_reverse(
            *self.pairs, self.slopes, layer.table, y, self.vectors.numpy(), self.distances,
            arrays[3], arrays[2], gradient.numpy(),
        )  # fmt: skip
        by_normal = mixed(by_y, layer.before_t, by_change).add_(upstream)  # by_change has served
        by_x = self.new()
        loops.normalise_reverse(normal, inverse, by_normal.numpy(), by_x.numpy())
        return by_x


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, network, pairs, vectors, distances, receiver, sender, attributes):
        follow_torch_threads()
        ctx.evaluation = _Pass(
            network, (pairs, vectors.detach(), distances.detach(), receiver, sender, attributes)
        )
        return ctx.evaluation.forward()

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # with create_graph; the graph would lack this function
            raise RuntimeError(
                "the inference kernels of TensorNet have no second derivative: use the eager model "
                "or FusedTensorNet (get_hessian does)"
            )
        gradient = ctx.evaluation.backward(upstream.contiguous())
        return None, None, gradient, None, None, None, None


class TensorNetInference(nn.Module):
    """The function of a `TensorNet` with fixed parameters, and its derivative by positions.

    Distances must be the lengths of the vectors: the whole derivative goes through the vectors.
    There is no second derivative (an error says so) and none by the parameters: `FusedTensorNet`
    has both. The full pair list must be sorted by receiver.

    Args:
        core: the network; changes to its parameters after this are not seen.
        n_knots: size of the radial tables; None takes as many as `inference_tables` finds enough.
    """

    def __init__(self, core: TensorNet, n_knots: int | None = None) -> None:
        super().__init__()
        self.core = core
        self.cutoff = core.cutoff
        self.elements = core.elements
        self.conditions_on = core.conditions_on
        embedding, weight = core.embedding, core.linear.weight
        stages = (embedding, *core.layers)
        tables = inference_tables(stages, self.cutoff, weight.dtype, n_knots)
        self.n_knots = tables[0].shape[0] // 2
        self.step = self.cutoff / (self.n_knots - 1)
        self.grid = np.array((self.step, self.n_knots))
        self.table = tables[0].numpy()
        self.layers = [
            _Layer(layer, table) for layer, table in zip(core.layers, tables[1:], strict=True)
        ]
        self.at_zero = embedding.radial_functions(weight.new_zeros(1))[:, 0].detach()
        self.mix, self.mix_t = _both_ways(embedding.mix)
        self.scalars = Perceptron(embedding.norm, list(embedding.scalars), last_activated=True)
        self.head = Perceptron(core.norm, [core.linear, *core.output], last_activated=False)

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As `TensorNet.forward`."""
        core = self.core
        with torch.no_grad():
            attributes = core.attributes(system, charge, multiplicity, partial_charges)
            state = core.embedded_state(charge, multiplicity)
            features = core.embedding.atom_features(numbers, state, system)
        return {"energies": _Energies.apply(self, pairs, vectors, distances, *features, attributes)}
