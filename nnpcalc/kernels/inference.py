"""TensorNet for energies and forces alone: every stage and its reverse by hand.

`FusedTensorNet` differentiates to any order, which training and Hessians need, and pays for it with
autograd's bookkeeping of some fifty nodes. Here the parameters are fixed and one derivative is
asked for, that by the pair vectors; it is written out, and autograd sees a single function.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.kernels import inference_pairs as walks
from nnpcalc.kernels import inference_step as step
from nnpcalc.kernels.inference_arrays import FEWEST, Memory, OfAtoms, Parameters
from nnpcalc.kernels.invariance import row_block
from nnpcalc.kernels.perceptron import Perceptron
from nnpcalc.kernels.rows import packed, padded
from nnpcalc.kernels.table import Grid, inference_tables
from nnpcalc.kernels.workspace import Lent, Pool, aligned
from nnpcalc.models.tensornet import TensorNet


def _stacked(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Arrays of the layers as one [L, ...], also where there is no layer."""
    out = aligned((len(arrays), *(arrays[0].shape if arrays else empty)), dtype)
    for k, array in enumerate(arrays):
        out[k] = array
    return out


def _parameters(core: TensorNet, tables: list[Tensor]) -> Parameters:
    """Copies of all parameters as the loops want them."""
    embedding: Any = core.embedding
    layers: list[Any] = list(core.layers)
    dtype = tables[0].numpy().dtype
    grid = Grid(core.cutoff, tables[0].shape[0] // 2)
    blocked = [walks.table_blocks(table.numpy()) for table in tables]
    channels = core.linear.weight.shape[0]

    def mixing(modules: list[Any], *, back: bool) -> np.ndarray:
        weights = [module.weight.detach() for module in modules]
        turned = [w if back else w.transpose(1, 2) for w in weights]
        one = packed(np.zeros((3, channels, channels), dtype))
        return _stacked([packed(w.contiguous().numpy()) for w in turned], one.shape, dtype)

    before, after = [x.mix_before for x in layers], [x.mix_after for x in layers]
    at_zero = [
        layer.at_zero(table[None, :1]).detach()[0].numpy()
        for layer, table in zip(layers, tables[1:], strict=True)
    ]
    hidden: Any = core.output[0]
    last: Any = core.output[1]
    return Parameters(
        grid=np.array((grid.scale, grid.n_knots)),
        table=blocked[0],
        tables=_stacked(blocked[1:], blocked[0].shape, dtype),
        mix=mixing([embedding.mix], back=False)[0],
        mix_back=mixing([embedding.mix], back=True)[0],
        before=mixing(before, back=False),
        before_back=mixing(before, back=True),
        after=mixing(after, back=False),
        after_back=mixing(after, back=True),
        at_zero=_stacked(at_zero, (9, channels), dtype),
        symmetric=np.array([core.config.equivariance == "O(3)"]),
        nothing=padded(np.zeros(channels, dtype)),
        scalars=Perceptron.of(embedding.norm, *embedding.scalars),
        head=Perceptron.of(core.norm, core.linear, hidden),
        head_weights=last.weight.detach()[0].numpy().copy(),
        head_bias=last.bias.detach().numpy().copy(),
    )


class _Memory:
    """Memory that goes back to its pool with the graph that needs it."""

    def __init__(self, network: TensorNetInference, n_atoms: int) -> None:
        self.pool, self.lent = network.pool, network.lend(n_atoms)

    def __del__(self) -> None:
        if hasattr(self, "lent"):
            self.pool.take_back(self.lent)


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, network, pairs, vectors, distances, atoms):
        n_atoms = atoms.receiver.shape[0]
        ends, between, lengths = (
            x.detach().contiguous().numpy() for x in (pairs, vectors, distances)
        )
        net, size = network.parameters_of_loops, network.size(n_atoms)
        ctx.network, ctx.atoms, ctx.memory = network, atoms, _Memory(network, n_atoms)
        ctx.pairs = step.list_pairs(ends, between, lengths, n_atoms)
        step.forward(size, net, atoms, ctx.pairs, ctx.memory.lent.arrays)
        return torch.from_numpy(ctx.memory.lent.arrays.energies.copy())

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # with create_graph; the graph would lack this function
            raise RuntimeError(
                "the inference kernels of TensorNet have no second derivative: use the eager model "
                "or FusedTensorNet (get_hessian does)"
            )
        network, gradient = ctx.network, np.zeros_like(ctx.pairs.vectors)
        step.backward(
            network.size(len(upstream)), network.parameters_of_loops, ctx.atoms, ctx.pairs,
            ctx.memory.lent.arrays, upstream.contiguous().numpy(), gradient,
        )  # fmt: skip
        return None, None, torch.from_numpy(gradient), None, None


class TensorNetInference(nn.Module):
    """The function of a `TensorNet` with fixed parameters, and its derivative by positions.

    Distances must be the lengths of the vectors: the whole derivative goes through the vectors.
    There is no second derivative (an error says so) and none by the parameters: `FusedTensorNet`
    has both. The full pair list must be sorted by receiver.

    Copies and pickles hold the network and are built anew: the loops' arrays are larger, and laid
    out for the processor at hand.

    Args:
        core: the network; changes to its parameters after this are not seen.
        n_knots: size of the radial tables; None takes as many as `inference_tables` finds enough.

    Attributes:
        n_knots: size of the tables.
        brings_spare_atoms: a caller need not add any, see `nnpcalc.kernels.invariance`.
    """

    brings_spare_atoms = True

    def __init__(self, core: TensorNet, n_knots: int | None = None) -> None:
        super().__init__()
        self.core = core
        self.cutoff = core.cutoff
        self.elements = core.elements
        self.conditions_on = core.conditions_on
        embedding, weight = core.embedding, core.linear.weight
        self.dtype, self.channels = weight.dtype, weight.shape[0]
        tables = inference_tables((embedding, *core.layers), self.cutoff, weight.dtype, n_knots)
        self.n_knots = tables[0].shape[0] // 2
        self.at_zero = embedding.radial_functions(weight.new_zeros(1))[:, 0].detach()
        self.parameters_of_loops = _parameters(core, tables)
        self.pool: Pool[Memory] = Pool()

    def __reduce__(self) -> tuple[type[TensorNetInference], tuple[TensorNet, int]]:
        return TensorNetInference, (self.core, self.n_knots)

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
        """What of the arguments of `forward` does not depend on positions, for the loops.

        Spare atoms make a system's bits those it has alone, see `nnpcalc.kernels.invariance`.
        """
        core: Any = self.core
        n_atoms = numbers.shape[0]
        if spare := -n_atoms % (row_block() or 1):
            numbers = torch.cat((numbers, numbers[:1].expand(spare)))
            system = torch.cat((system, system.new_full((spare,), charge.shape[0])))
            charge = torch.cat((charge, charge.new_zeros(1)))
            multiplicity = torch.cat((multiplicity, multiplicity.new_ones(1)))
            if partial_charges is not None:
                partial_charges = torch.cat((partial_charges, partial_charges.new_zeros(spare)))
        attributes = core.attributes(system, charge, multiplicity, partial_charges)
        state = core.embedded_state(charge, multiplicity)
        receiver, sender = core.embedding.atom_features(numbers, state, system)
        receiver, sender = receiver[:n_atoms], sender[:n_atoms]
        square = np.ones((len(core.layers), n_atoms), receiver.numpy().dtype)
        if attributes.shape[1]:
            for k, layer in enumerate(core.layers):
                square[k] = layer.prefactor(attributes).view(-1)[:n_atoms].numpy()
        return OfAtoms(
            receiver.contiguous().numpy(),
            sender.contiguous().numpy(),
            (self.at_zero * (receiver + sender)).numpy(),
            # the published SO(3) networks have the prefactor at the square alone
            square if core.config.equivariance == "O(3)" else np.ones_like(square),
            square,
        )

    def size(self, n_atoms: int) -> int:
        """Elements of the features of so many atoms, by which a program is chosen."""
        return 9 * n_atoms * self.channels

    def lend(self, n_atoms: int) -> Lent[Memory]:
        """Memory for an evaluation, which `pool` wants back."""
        workers = max(1, min(torch.get_num_threads(), n_atoms // FEWEST))
        return self.pool.lend(
            (n_atoms, workers),
            partial(Memory.room, self.parameters_of_loops, n_atoms, workers),
        )
