"""TensorNet for energies and forces alone: every stage and its reverse by hand.

`FusedTensorNet` differentiates to any order, which training and Hessians need, and pays for it with
autograd's bookkeeping of some fifty nodes. Here the parameters are fixed and one derivative is
asked for, that by the pair vectors; it is written out, and autograd sees a single function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.kernels import inference_loops as loops
from nnpcalc.kernels import inference_pairs as walks
from nnpcalc.kernels.forms import follow_torch_threads
from nnpcalc.kernels.table import inference_tables
from nnpcalc.kernels.workspace import Block, LayerMemory, Pool
from nnpcalc.models.tensornet import TensorNet


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
        self.table = walks.table_blocks(table.numpy())
        self.dtype = self.table.dtype
        self.before, self.before_t = _both_ways(layer.mix_before)
        self.after, self.after_t = _both_ways(layer.mix_after)
        self.at_zero = layer.at_zero(table[None, :1]).detach()[0].numpy()
        self.symmetric = np.array([bool(layer.parity)])

    def prefactors(self, attributes: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """g [N] of the product (1 for SO(3), as published) and of the square."""
        if not attributes.shape[1]:
            ones = np.ones(attributes.shape[0], self.dtype)
            return ones, ones
        g = self.module.prefactor(attributes).expand(attributes.shape[0], 1, 1).contiguous()
        square = g.view(-1).numpy()
        return (square if self.module.parity else np.ones_like(square)), square


def _both_ways(linear: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights that rows are multiplied with from the right, going forward and back: 3 [F, F]."""
    weight = linear.weight.detach()
    return weight.transpose(1, 2).contiguous().unbind(), weight.contiguous().unbind()


class OfAtoms(NamedTuple):
    """What elements and states say, wherever the atoms are.

    Attributes:
        receiver, sender: both halves of the pair embedding [N, F].
        own: an atom's own part of the embedding, of I only [N, F].
        prefactors: of each layer's product and square, 2 x [N].
    """

    receiver: np.ndarray
    sender: np.ndarray
    own: Tensor
    prefactors: list[tuple[np.ndarray, np.ndarray]]


class _Pass:
    """One evaluation: the forward stages keep what their reverse needs, in a workspace."""

    def __init__(
        self,
        network: TensorNetInference,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        atoms: OfAtoms,
    ) -> None:
        self.network, self.atoms = network, atoms
        n_pairs, dtype = distances.shape[0], network.table.dtype
        n_atoms, channels = atoms.receiver.shape
        self.memory = network.pool.lend(n_atoms, channels, len(network.layers), dtype)
        self.vectors = vectors.contiguous().numpy()
        self.distances = distances.contiguous().numpy()
        w, self.slopes = np.empty((2, n_pairs, 4), dtype)
        self.angular, knot = np.empty((n_pairs, 9), dtype), np.empty(n_pairs, np.int64)
        walks.pair_geometry(
            self.vectors, self.distances, network.grid, knot, w, self.slopes, self.angular
        )
        i, j = pairs.contiguous().numpy()
        self.pairs = (np.searchsorted(i, np.arange(n_atoms + 1)), j, knot, w)

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self.network.pool.take_back(self.memory)

    def forward(self) -> Tensor:
        """Energies of the atoms [N]."""
        network, memory, atoms = self.network, self.memory, self.atoms
        summed, norms = memory.summed, memory.norms
        walks.embed_pairs(
            *self.pairs, network.table, atoms.receiver, atoms.sender, self.angular, summed.array
        )
        summed.tensor[0].add_(atoms.own)
        loops.part_norms(summed.array, memory.norms_array)
        scales, self.kept_scales = network.scalars(norms.sum(1))
        self.scales = scales.view(norms.shape).numpy()
        summed.mix(network.mix, memory.mixed)
        loops.scale_parts(memory.mixed.array, self.scales, memory.start.array)
        x = memory.start
        for k, layer in enumerate(network.layers):
            self.interact(layer, memory.layers[k], atoms.prefactors[k], x)
            x = memory.layers[k].out
        self.x = x
        loops.part_norms(x.array, memory.norms_array)
        energies, self.kept_head = network.head(norms.flatten(1).clone())
        return energies.squeeze(-1)

    def interact(self, layer: _Layer, m: LayerMemory, g: tuple[np.ndarray, ...], x: Block) -> None:
        """One layer, from its input x to m.out."""
        g_product, g_square = g
        loops.normalise(x.array, m.normal.array, m.inverse)
        m.normal.mix(layer.before, m.y)
        walks.to_blocks(m.y.array, m.gathered_y)
        walks.message_pairs(*self.pairs, layer.table, m.gathered_y, m.message.array)
        loops.react(
            m.y.array, layer.at_zero, g_product, layer.symmetric, m.message.array,
            m.inverse_product, m.reacted.array,
        )  # fmt: skip
        m.reacted.mix(layer.after, m.change)
        loops.update(m.normal.array, m.change.array, g_square, m.out.array)

    def backward(self, upstream: Tensor) -> Tensor:
        """Derivative of sum(upstream * energies) by the pair vectors [P, 3]."""
        network, memory = self.network, self.memory
        gradient = np.zeros_like(self.vectors)
        by_distance = np.empty((network.table.shape[0], len(gradient)), gradient.dtype)
        by_norms = network.head.reverse(upstream.unsqueeze(-1), self.kept_head)
        g, spare = memory.by_out, memory.by_in
        g.tensor.zero_()
        loops.part_norms_reverse(self.x.array, by_norms.view(memory.norms.shape).numpy(), g.array)
        for k in reversed(range(len(network.layers))):
            self.interact_reverse(
                network.layers[k], memory.layers[k], self.atoms.prefactors[k], g, spare,
                by_distance,
                gradient,
            )  # fmt: skip
            g, spare = spare, g
        by_scales = np.empty_like(self.scales)
        loops.scale_parts_reverse(
            memory.mixed.array, self.scales, g.array, memory.by_change.array, by_scales
        )
        by_norm = network.scalars.reverse(torch.from_numpy(by_scales).flatten(1), self.kept_scales)
        memory.by_change.mix(network.mix_t, spare)
        by_norms = by_norm.unsqueeze(1).expand(-1, 3, -1).contiguous()
        loops.part_norms_reverse(memory.summed.array, by_norms.numpy(), spare.array)
        walks.to_blocks(spare.array, memory.gathered)
        walks.embed_pairs_reverse(
            *self.pairs, self.slopes, network.table, self.atoms.receiver, self.atoms.sender,
            self.angular, self.distances, memory.gathered, gradient,
        )  # fmt: skip
        return torch.from_numpy(gradient)

    def interact_reverse(
        self,
        layer: _Layer,
        m: LayerMemory,
        g: tuple[np.ndarray, ...],
        upstream: Block,
        by_x: Block,
        by_distance: np.ndarray,
        gradient: np.ndarray,
    ) -> None:
        """by_x = derivative by the layer's input; that by the pair vectors is added to gradient.

        by_distance [B, P] is room for the loops.
        """
        memory, (g_product, g_square) = self.memory, g
        by_change, by_reacted, by_y = memory.by_change, memory.by_reacted, memory.by_y
        loops.update_reverse(m.change.array, g_square, upstream.array, by_change.array)
        by_change.mix(layer.after_t, by_reacted)
        loops.react_reverse(
            m.y.array, m.message.array, layer.at_zero, g_product, layer.symmetric,
            m.reacted.array, m.inverse_product, by_reacted.array, by_y.array,
            memory.by_message.array,
        )  # fmt: skip
        walks.to_blocks(memory.by_message.array, memory.gathered)
        walks.message_pairs_reverse(
            *self.pairs, self.slopes, layer.table, m.gathered_y, memory.gathered, by_y.array,
            by_distance,
        )  # fmt: skip
        walks.add_along(by_distance, self.vectors, self.distances, gradient)
        by_y.mix(layer.before_t, by_change)  # which has served
        by_change.tensor.add_(upstream.tensor)
        loops.normalise_reverse(m.normal.array, m.inverse, by_change.array, by_x.array)


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, network, pairs, vectors, distances, atoms):
        follow_torch_threads()
        ctx.evaluation = _Pass(network, pairs, vectors.detach(), distances.detach(), atoms)
        return ctx.evaluation.forward()

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # with create_graph; the graph would lack this function
            raise RuntimeError(
                "the inference kernels of TensorNet have no second derivative: use the eager model "
                "or FusedTensorNet (get_hessian does)"
            )
        gradient = ctx.evaluation.backward(upstream.contiguous())
        return None, None, gradient, None, None


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
        self.grid = np.array(((self.n_knots - 1) / self.cutoff, self.n_knots))
        self.pool = Pool()
        self.table = walks.table_blocks(tables[0].numpy())
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
        atoms = self.of_atoms(numbers, system, charge, multiplicity, partial_charges)
        return {"energies": _Energies.apply(self, pairs, vectors, distances, atoms)}

    @torch.no_grad()
    def of_atoms(
        self,
        numbers: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> OfAtoms:
        """What of the arguments of `forward` does not depend on positions, for `evaluate`."""
        core = self.core
        attributes = core.attributes(system, charge, multiplicity, partial_charges)
        state = core.embedded_state(charge, multiplicity)
        receiver, sender = core.embedding.atom_features(numbers, state, system)
        return OfAtoms(
            receiver.contiguous().numpy(),
            sender.contiguous().numpy(),
            self.at_zero * (receiver + sender),
            [layer.prefactors(attributes) for layer in self.layers],
        )

    @torch.no_grad()
    def evaluate(
        self,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        atoms: OfAtoms,
        *,
        derivative: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Without autograd: energies of the atoms [N] and, if wanted, the derivative of their sum
        by the vectors [P, 3]."""
        follow_torch_threads()
        evaluation = _Pass(self, pairs, vectors, distances, atoms)
        energies = evaluation.forward()
        gradient = evaluation.backward(torch.ones_like(energies)) if derivative else None
        return energies, gradient
