"""TensorNet for energies and forces on a GPU: `nnpcalc.kernels.inference` with Triton's kernels.

Same tables, same stages, same hand-written reverse; matrix products are PyTorch's. An evaluation
with forces is some seventy launches with two layers, and waits for the GPU nowhere.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor, nn

from nnpcalc.kernels import triton_nodes as nodes
from nnpcalc.kernels import triton_pairs as pair_kernels
from nnpcalc.kernels.table import Grid, inference_tables
from nnpcalc.kernels.triton_linear import Perceptron, mixed
from nnpcalc.models.tensornet import TensorNet

INTERPRETED = bool(triton.knobs.runtime.interpret)
COMPILER = {"enable_fp_fusion": True}  # a b + c in one rounding; the default is to change

# Elements per program of the kernels over atoms: with nine components and up to four arrays a
# thread is left with two of them, which fit into its registers.
BLOCK, WARPS = 256, 4
# Elements (pairs times channels) of one warp over pairs: four channels of a thread are one read.
# Programs take few channels, so that what the GPU works on at a time (some columns of the table and
# of the neighbours' features) stays in its caches.
WARP, CHANNELS = 128, 32
# Programs over pairs that fill a large GPU. Fewer take more pairs at a time, in several warps,
# since then the walk along the pairs is what takes the time.
ENOUGH, MOST_WARPS = 4096, 8


class _Layer:
    """The parameters of an interaction layer as the kernels want them."""

    def __init__(self, layer: Any, table: Tensor) -> None:
        self.module = layer
        self.table = table
        self.symmetric = bool(layer.parity)
        self.before, self.before_t = _both_ways(layer.mix_before)
        self.after, self.after_t = _both_ways(layer.mix_after)
        self.at_zero = layer.at_zero(table[None, :1]).detach()[0].contiguous()

    def prefactors(self, attributes: Tensor) -> tuple[Tensor, Tensor]:
        """g [N] of the product (1 for SO(3), as published) and of the square."""
        g = self.module.prefactor(attributes).expand(attributes.shape[0], 1, 1)
        square = g.reshape(-1).contiguous()
        return (square if self.symmetric else torch.ones_like(square)), square


def _both_ways(linear: Any) -> tuple[Tensor, Tensor]:
    """Weights that rows are multiplied with from the right, going forward and back: [3, F, F]."""
    weight = linear.weight.detach()
    return weight.transpose(1, 2).contiguous(), weight.contiguous()


class _Pass:
    """One evaluation: the forward stages keep what their reverse needs, arrays [9, N, F]."""

    def __init__(self, network: TritonTensorNet, arguments: tuple[Tensor, ...]) -> None:
        pairs, vectors, distances, receiver, sender, attributes = arguments
        self.network, self.attributes = network, attributes
        self.vectors, self.distances = vectors.contiguous(), distances.contiguous()
        self.features = (receiver.contiguous(), sender.contiguous())
        self.n_atoms, channels = receiver.shape
        self.n_pairs = self.distances.shape[0]
        self.shape = (9, self.n_atoms, channels)
        i, self.sender = pairs[0].contiguous(), pairs[1].contiguous()
        atoms = torch.arange(self.n_atoms + 1, device=i.device)
        self.walk = (torch.searchsorted(i, atoms), self.sender, self.distances)
        # Kernels over atoms: one program for so many elements.
        self.nodes = (triton.cdiv(self.n_atoms * channels, BLOCK),)
        self.each: dict[str, Any] = {"F": channels, "BLOCK": BLOCK, "num_warps": WARPS, **COMPILER}
        # Kernels over pairs: one program for an atom and a block of channels.
        wide = min(triton.next_power_of_2(channels), CHANNELS)
        self.blocks = triton.cdiv(channels, wide)
        programs = max(self.n_atoms * self.blocks, 1)
        warps = min(triton.next_power_of_2(max(ENOUGH // programs, 1)), MOST_WARPS)
        self.atoms = (self.n_atoms, self.blocks)
        self.tile: dict[str, Any] = {
            "F": channels, "SCALE": network.grid.scale, "KNOTS": network.grid.n_knots,
            "BLOCK_P": warps * max(WARP // wide, 1), "BLOCK_F": wide, "num_warps": warps,
            **COMPILER,
        }  # fmt: skip

    def new(self, *shape: int) -> Tensor:
        return self.vectors.new_empty(shape or self.shape)

    def summary(self, last: bool) -> Tensor:
        """Room for the norms after the last layer, or for what a layer normalises with."""
        _, atoms, channels = self.shape
        return self.new(atoms, 3, channels) if last else self.new(atoms, channels)

    def forward(self) -> Tensor:
        """Energies of the atoms [N]."""
        network, last = self.network, not self.network.layers
        self.summed, norm, self.out = self.new(), self.summary(False), self.new()
        pair_kernels.embed_pairs[self.atoms](
            *self.walk, self.vectors, network.table, *self.features, network.at_zero,
            self.summed, norm, self.n_atoms, **self.tile,
        )  # fmt: skip
        self.scales, self.kept_scales = network.scalars(norm)
        self.mixed = mixed(self.summed, network.mix)
        self.kept = self.summary(last)
        nodes.scale[self.nodes](
            self.mixed, self.scales, self.out, self.kept, self.n_atoms, LAST=last, **self.each
        )
        self.steps: list[tuple[Any, ...]] = []
        out, kept = self.out, self.kept
        for k, layer in enumerate(network.layers):
            out, kept = self.interact(layer, out, k + 1 == len(network.layers))
        energies, self.kept_head = network.head(kept.flatten(1))
        return energies.squeeze(-1)

    def interact(self, layer: _Layer, normal: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Normalised X -> X and its norms after the last layer, else normalised X and 1/(...)."""
        g, g_square = layer.prefactors(self.attributes)
        y = mixed(normal, layer.before)
        message, reacted, inverse = self.new(), self.new(), self.summary(False)
        pair_kernels.interact[self.atoms](
            *self.walk, layer.table, y, layer.at_zero, g, message, reacted, inverse,
            self.n_atoms, SYMMETRIC=layer.symmetric, **self.tile,
        )  # fmt: skip
        change = mixed(reacted, layer.after)
        out, kept = self.new(), self.summary(last)
        nodes.update[self.nodes](
            normal, change, g_square, out, kept, self.n_atoms, LAST=last, **self.each
        )
        self.steps.append((layer, g, g_square, y, message, reacted, inverse, change, out, kept))
        return out, kept

    def backward(self, upstream: Tensor) -> Tensor:
        """Derivative of sum(upstream * energies) by the pair vectors [P, 3]."""
        network = self.network
        slopes = self.new(len(self.steps) * self.blocks, self.n_pairs)
        # The derivative by X as `_finish_reverse` takes it: by the norms, or in two summands.
        g = network.head.reverse(upstream.unsqueeze(-1), self.kept_head).contiguous()
        more = g
        for k in reversed(range(len(self.steps))):
            by_distance = slopes[k * self.blocks : (k + 1) * self.blocks]
            g, more = self.interact_reverse(k, g, more, by_distance)
        by_mixed, by_scales = self.new(), torch.empty_like(self.scales)
        nodes.scale_reverse[self.nodes](
            self.mixed, self.scales, self.out, self.kept, g, more, by_mixed, by_scales,
            self.n_atoms, LAST=not self.steps, **self.each,
        )  # fmt: skip
        by_norm = network.scalars.reverse(by_scales, self.kept_scales).contiguous()
        by_summed = mixed(by_mixed, network.mix_t)
        gradient = self.new(self.blocks, self.n_pairs, 3)
        pair_kernels.embed_pairs_reverse[self.atoms](
            *self.walk, self.vectors, network.table, *self.features, self.summed, by_norm,
            by_summed, slopes, gradient, self.n_atoms, self.n_pairs, slopes.shape[0], **self.tile,
        )  # fmt: skip
        return gradient[0] if self.blocks == 1 else gradient.sum(0)

    def interact_reverse(
        self, k: int, g: Tensor, more: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivative by the layer's normalised input, in two summands; slopes [blocks, P] are set
        to the derivative by the distances."""
        layer, prefactor, g_square, y, message, reacted, inverse, change, out, kept = self.steps[k]
        last = k + 1 == len(self.steps)
        by_x, by_change = self.new(), self.new()
        nodes.update_reverse[self.nodes](
            change, g_square, out, kept, g, more, by_x, by_change, self.n_atoms,
            LAST=last, **self.each,
        )  # fmt: skip
        by_reacted = mixed(by_change, layer.after_t)
        by_y, by_message = self.new(), self.new()
        nodes.react_reverse[self.nodes](
            y, message, layer.at_zero, prefactor, reacted, inverse, by_reacted, by_y, by_message,
            self.n_atoms, SYMMETRIC=layer.symmetric, **self.each,
        )  # fmt: skip
        pair_kernels.message_reverse[self.atoms](
            *self.walk, layer.table, y, by_message, by_y, slopes, self.n_atoms, self.n_pairs,
            **self.tile,
        )  # fmt: skip
        return mixed(by_y, layer.before_t), by_x


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, network, pairs, vectors, distances, receiver, sender, attributes):
        with torch.cuda.device_of(vectors):
            ctx.evaluation = _Pass(
                network, (pairs, vectors.detach(), distances.detach(), receiver, sender, attributes)
            )
            return ctx.evaluation.forward()

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # with create_graph; the graph would lack this function
            raise RuntimeError(
                "the inference kernels of TensorNet have no second derivative: use the eager model "
                "(get_hessian does)"
            )
        with torch.cuda.device_of(upstream):
            gradient = ctx.evaluation.backward(upstream.contiguous())
        return None, None, gradient, None, None, None, None


class TritonTensorNet(nn.Module):
    """The function of a `TensorNet` with fixed parameters and its derivative by positions, on CUDA.

    As `nnpcalc.kernels.inference.TensorNetInference`, whose numbers it gives: distances must be
    the lengths of the vectors, the full pair list sorted by receiver, and there is no second
    derivative and none by the parameters.

    Args:
        core: the network, on its device and in its dtype; changes to it after this are not seen.
        n_knots: size of the radial tables; None takes as many as `inference_tables` finds enough.

    Raises:
        ValueError: the network is not on a CUDA device (nor in Triton's interpreter).
    """

    def __init__(self, core: TensorNet, n_knots: int | None = None) -> None:
        super().__init__()
        weight = core.linear.weight
        if weight.device.type != "cuda" and not INTERPRETED:
            raise ValueError(
                f"the Triton kernels of TensorNet need a CUDA device, but the network is on "
                f"{weight.device}: move it with .to('cuda') or use TensorNetInference"
            )
        self.core = core
        self.cutoff = core.cutoff
        self.elements = core.elements
        self.conditions_on = core.conditions_on
        embedding = core.embedding
        stages = (embedding, *core.layers)
        tables = inference_tables(stages, self.cutoff, weight.dtype, n_knots)
        self.grid = Grid(self.cutoff, tables[0].shape[0] // 2)
        self.table = tables[0]
        self.layers = [
            _Layer(layer, table) for layer, table in zip(core.layers, tables[1:], strict=True)
        ]
        at_zero = embedding.radial_functions(weight.new_zeros(1))[0, 0]
        self.at_zero = at_zero.detach().contiguous()
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
        features = self.of_atoms(numbers, system, charge, multiplicity, partial_charges)
        return {"energies": _Energies.apply(self, pairs, vectors, distances, *features)}

    @torch.no_grad()
    def of_atoms(
        self,
        numbers: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What stays as it is while atoms move: their features as receivers and as senders [N, F]
        and their attributes [N, A]."""
        core = self.core
        attributes = core.attributes(system, charge, multiplicity, partial_charges)
        state = core.embedded_state(charge, multiplicity)
        return *core.embedding.atom_features(numbers, state, system), attributes

    @torch.no_grad()
    def evaluate(
        self,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        of_atoms: tuple[Tensor, Tensor, Tensor],
        derivative: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Energies of the atoms [N] and, if wanted, the derivative of their sum by the vectors
        [P, 3]; no graph is made.

        The list may end with pairs of a receiver N, which is no atom: they are left out, and their
        rows of the derivative are uninitialised memory.
        """
        with torch.cuda.device_of(vectors):
            evaluation = _Pass(self, (pairs, vectors, distances, *of_atoms))
            energies = evaluation.forward()
            if not derivative:
                return energies, None
            return energies, evaluation.backward(torch.ones_like(energies))
