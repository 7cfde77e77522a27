"""What TensorNet's inference on the CPU works on: tuples of arrays, and how atoms are divided.

Atoms are done in slabs of some twenty, whose features stay in a core's cache from one stage to the
next. Arrays [9 N, F] hold the slabs' components one slab after the other: [9, n, F] each, so that
the channel mixing of I, A and S is one matrix product over contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from nnpcalc.kernels.perceptron import Activations, Perceptron
from nnpcalc.kernels.simd import EXACT, blocks
from nnpcalc.kernels.workspace import in_one_piece

#: Most atoms of a slab: with 128 channels an array of them is a tenth of a core's second cache.
SLAB = 24

#: Atoms of each thread below which fewer threads work.
FEWEST = 10


class Parameters(NamedTuple):
    """Of a network of L layers; matrices of the channel mixing are packed.

    Attributes:
        grid: scale of `nnpcalc.kernels.table.Grid`, and how many knots there are [2].
        table, tables: in blocks of channels, of the embedding and of the layers [L, ...].
        mix, mix_back: of the embedding, and their transposes.
        before, before_back, after, after_back: of the layers, before and after the messages.
        at_zero: weights of an atom's message to itself [L, 9, F].
        symmetric: which product the layers take, see `react` [1].
        nothing: zeros, a bias for the channel mixing.
        scalars, head: perceptrons of the embedding and of the read-out, the last row of which is
            head_weights [H] with head_bias [1].
    """

    grid: np.ndarray
    table: np.ndarray
    tables: np.ndarray
    mix: np.ndarray
    mix_back: np.ndarray
    before: np.ndarray
    before_back: np.ndarray
    after: np.ndarray
    after_back: np.ndarray
    at_zero: np.ndarray
    symmetric: np.ndarray
    nothing: np.ndarray
    scalars: Perceptron
    head: Perceptron
    head_weights: np.ndarray
    head_bias: np.ndarray


class OfAtoms(NamedTuple):
    """What elements and states say, wherever the atoms are.

    Attributes:
        receiver, sender: both halves of the pair embedding [N, F].
        self_pair: an atom's own part of the embedding, of I only [N, F].
        product, square: prefactors of each layer's product and square [L, N].
    """

    receiver: np.ndarray
    sender: np.ndarray
    self_pair: np.ndarray
    product: np.ndarray
    square: np.ndarray


class Pairs(NamedTuple):
    """A full list sorted by receiver; see `nnpcalc.kernels.inference_pairs`."""

    pointer: np.ndarray
    j: np.ndarray
    knot: np.ndarray
    w: np.ndarray
    slopes: np.ndarray
    angular: np.ndarray
    vectors: np.ndarray
    distances: np.ndarray


class Scratch(NamedTuple):
    """What a slab needs within a chain of stages, for each of T workers.

    Attributes:
        x, one, two: features [T, 9 SLAB, F].
        norms: [T, SLAB, 3 F]; norm: [T, SLAB, F].
        scores: what the head's last row sums [T, SLAB, H].
        blocked: features in blocks [T, B, SLAB, 9, L].
    """

    x: np.ndarray
    one: np.ndarray
    two: np.ndarray
    norms: np.ndarray
    norm: np.ndarray
    scores: np.ndarray
    blocked: np.ndarray


class Memory(NamedTuple):
    """What the stages leave for the reverse or for other slabs.

    Attributes:
        summed, mixed: stages of the embedding [9 N, F].
        normal, y, message, reacted, change: stages of the layers [L, 9 N, F].
        inverse, inverse_product: of both normalisations [L, N, F].
        gathered_y: y in blocks [L, B, N, 9, lanes].
        out: the features at the end [9 N, F].
        by_x, by_y: derivatives by a layer's input and by its y [9 N, F].
        gathered: derivatives by messages in blocks, of one layer and of the next [2, ...].
        scalars, head: of the perceptrons.
        energies: of the atoms [N].
        scratch: of the workers.
    """

    summed: np.ndarray
    mixed: np.ndarray
    normal: np.ndarray
    y: np.ndarray
    message: np.ndarray
    reacted: np.ndarray
    change: np.ndarray
    inverse: np.ndarray
    inverse_product: np.ndarray
    gathered_y: np.ndarray
    out: np.ndarray
    by_x: np.ndarray
    by_y: np.ndarray
    gathered: np.ndarray
    scalars: Activations
    head: Activations
    energies: np.ndarray
    scratch: Scratch

    @staticmethod
    def room(
        net: Parameters, n_atoms: int, workers: int, pages: np.ndarray | None = None
    ) -> tuple[Memory, np.ndarray]:
        """Uninitialised, for a network, so many atoms and so many threads at work.

        As `nnpcalc.kernels.workspace.in_one_piece`, in pages that there may be, which are returned.
        """
        dtype, layers = net.nothing.dtype, net.tables.shape[0]
        channels, scores = net.at_zero.shape[2], net.head.sizes[2]
        n_blocks, lanes = blocks(channels, dtype)

        one, blocked = (9 * n_atoms, channels), (n_blocks, n_atoms, 9, lanes)
        slab = (workers, 9 * SLAB, channels)

        def arrange(new: Callable[..., np.ndarray]) -> Memory:
            return Memory(
                summed=new(*one),
                mixed=new(*one),
                normal=new(layers, *one),
                y=new(layers, *one),
                message=new(layers, *one),
                reacted=new(layers, *one),
                change=new(layers, *one),
                inverse=new(layers, n_atoms, channels),
                inverse_product=new(layers, n_atoms, channels),
                gathered_y=new(layers, *blocked),
                out=new(*one),
                by_x=new(*one),
                by_y=new(*one),
                gathered=new(2, *blocked),
                scalars=Activations.room(n_atoms, net.scalars.sizes, new),
                head=Activations.room(n_atoms, net.head.sizes, new),
                energies=new(n_atoms),
                scratch=Scratch(
                    x=new(*slab),
                    one=new(*slab),
                    two=new(*slab),
                    norms=new(workers, SLAB, 3 * channels),
                    norm=new(workers, SLAB, channels),
                    scores=new(workers, SLAB, scores),
                    blocked=new(workers, n_blocks, SLAB, 9, lanes),
                ),
            )

        return in_one_piece(arrange, dtype, pages)


@njit(fastmath=EXACT)
def slabs(n_atoms, worker, workers):
    """What a worker does: most atoms of a slab, its first atom, and its last + 1."""
    begin, end = worker * n_atoms // workers, (worker + 1) * n_atoms // workers
    count = max((end - begin + SLAB - 1) // SLAB, 1)
    return max((end - begin + count - 1) // count, 1), begin, end


@njit(fastmath=EXACT)
def part(x, first, last):
    """Of features [9 N, F], those of the slab of atoms first to last - 1: [9, n, F]."""
    return x[9 * first : 9 * last].reshape((9, last - first, x.shape[1]))


@njit(fastmath=EXACT)
def activations(kept, first, last):
    """The rows of these atoms."""
    return Activations(
        kept.normal[first:last], kept.inverse[first:last], kept.scaled[first:last],
        kept.one[first:last], kept.one_slope[first:last], kept.two[first:last],
        kept.two_slope[first:last], kept.by_one[first:last],
    )  # fmt: skip
