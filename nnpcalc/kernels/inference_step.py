"""A whole evaluation of TensorNet and its reverse in one compiled program.

Between its stages nothing comes back to Python: the calls of a hundred stages cost a small molecule
more time than its arithmetic. The stages are in `nnpcalc.kernels.inference_loops` (atoms),
`inference_pairs` (pairs), `rows` (channel mixing) and `perceptron`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from nnpcalc.kernels import perceptron
from nnpcalc.kernels.inference_loops import (
    normalise,
    normalise_reverse,
    part_norms,
    part_norms_reverse,
    react,
    react_reverse,
    scale_parts,
    scale_parts_reverse,
    update,
    update_reverse,
    weighted_sum,
    weighted_sum_reverse,
    whole_norms,
    whole_norms_reverse,
)
from nnpcalc.kernels.inference_pairs import (
    add_along,
    embed_pairs,
    embed_pairs_reverse,
    message_pairs,
    message_pairs_reverse,
    pair_geometry,
    pair_vectors,
    to_blocks,
)
from nnpcalc.kernels.perceptron import Activations, Perceptron
from nnpcalc.kernels.programs import composed
from nnpcalc.kernels.rows import mix

run_perceptron, reverse_perceptron = perceptron.run, perceptron.reverse


class Parameters(NamedTuple):
    """Of a network of L layers; matrices of the channel mixing are packed.

    Attributes:
        grid: knots per Å, and how many there are [2].
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


class Memory(NamedTuple):
    """Arrays of the size of the atoms' features [9, N, F], those of the layers [L, 9, N, F].

    Attributes:
        summed, mixed, start: stages of the embedding; start is the input of the first layer.
        normal, y, message, reacted, change, out: stages of the layers.
        inverse, inverse_product: of both normalisations [L, N, F].
        gathered_y: y in blocks [L, ...].
        by_change, by_reacted, by_y, by_message, by_out, by_in: derivatives by these stages, and by
            a layer's output and input.
        gathered: one of them in blocks.
        norms, scales, by_norms: [N, 3, F].
        norm, by_norm: [N, F].
        scalars, head: of the perceptrons.
        by_scores: derivative by what the head's last row sums [N, H].
        energies: of the atoms [N].
    """

    summed: np.ndarray
    mixed: np.ndarray
    start: np.ndarray
    normal: np.ndarray
    y: np.ndarray
    message: np.ndarray
    reacted: np.ndarray
    change: np.ndarray
    out: np.ndarray
    inverse: np.ndarray
    inverse_product: np.ndarray
    gathered_y: np.ndarray
    by_change: np.ndarray
    by_reacted: np.ndarray
    by_y: np.ndarray
    by_message: np.ndarray
    by_out: np.ndarray
    by_in: np.ndarray
    gathered: np.ndarray
    norms: np.ndarray
    by_norms: np.ndarray
    norm: np.ndarray
    by_norm: np.ndarray
    scalars: Activations
    head: Activations
    by_scores: np.ndarray
    energies: np.ndarray


@njit(cache=True, fastmath=False)
def first_pairs(receivers, pointer):
    """pointer [N + 1]: the first pair of each atom, from the receivers [P] in ascending order."""
    n = 0
    for p in range(receivers.size):
        while n <= receivers[p]:
            pointer[n] = p
            n += 1
    pointer[n:] = receivers.size


@composed
def geometry(grid, pairs, vectors, distances, n_atoms):
    """The `Pairs` of pairs [2, P] with vectors and distances."""
    n_pairs = distances.size
    w = np.empty((n_pairs, 4), vectors.dtype)
    slopes = np.empty((n_pairs, 4), vectors.dtype)
    angular = np.empty((n_pairs, 9), vectors.dtype)
    knot = np.empty(n_pairs, np.int64)
    pointer = np.empty(n_atoms + 1, np.int64)
    first_pairs(pairs[0], pointer)
    pair_geometry(vectors, distances, grid, knot, w, slopes, angular)
    return Pairs(pointer, pairs[1], knot, w, slopes, angular, vectors, distances)


@composed
def forward(net, atoms, p, m):
    """m.energies; the other stages stay in m for `backward`."""
    embed_pairs(
        p.pointer, p.j, p.knot, p.w, net.table, atoms.receiver, atoms.sender, atoms.self_pair,
        p.angular, m.summed,
    )  # fmt: skip
    whole_norms(m.summed, m.norm)
    run_perceptron(net.scalars, m.norm, m.scalars)
    mix(m.summed, net.mix, net.nothing, m.mixed)
    scale_parts(m.mixed, m.scalars.two.reshape(m.norms.shape), m.start)
    x = m.start
    for k in range(net.tables.shape[0]):
        normalise(x, m.normal[k], m.inverse[k])
        mix(m.normal[k], net.before[k], net.nothing, m.y[k])
        to_blocks(m.y[k], m.gathered_y[k])
        message_pairs(p.pointer, p.j, p.knot, p.w, net.tables[k], m.gathered_y[k], m.message[k])
        react(
            m.y[k], net.at_zero[k], atoms.product[k], net.symmetric, m.message[k],
            m.inverse_product[k], m.reacted[k],
        )  # fmt: skip
        mix(m.reacted[k], net.after[k], net.nothing, m.change[k])
        update(m.normal[k], m.change[k], atoms.square[k], m.out[k])
        x = m.out[k]
    part_norms(x, m.norms)
    run_perceptron(net.head, m.norms.reshape(x.shape[1], 3 * x.shape[2]), m.head)
    weighted_sum(m.head.two, net.head_weights, net.head_bias, m.energies)


@composed
def backward(net, atoms, p, m, upstream, gradient):
    """gradient [P, 3] += derivative of sum(upstream * m.energies) by the pairs' vectors."""
    by_distance = np.empty((net.table.shape[0], p.distances.size), gradient.dtype)
    n_layers, n_atoms, channels = net.tables.shape[0], m.norms.shape[0], m.norms.shape[2]
    flat = (n_atoms, 3 * channels)
    weighted_sum_reverse(upstream, net.head_weights, m.by_scores)
    reverse_perceptron(net.head, m.by_scores, m.head, m.by_norms.reshape(flat))
    g, spare = m.by_out, m.by_in
    part_norms_reverse(m.out[n_layers - 1] if n_layers else m.start, m.by_norms, g)
    for k in range(n_layers - 1, -1, -1):
        update_reverse(m.change[k], atoms.square[k], g, m.by_change)
        mix(m.by_change, net.after_back[k], net.nothing, m.by_reacted)
        react_reverse(
            m.y[k], m.message[k], net.at_zero[k], atoms.product[k], net.symmetric, m.reacted[k],
            m.inverse_product[k], m.by_reacted, m.by_y, m.by_message,
        )  # fmt: skip
        to_blocks(m.by_message, m.gathered)
        message_pairs_reverse(
            p.pointer, p.j, p.knot, p.w, p.slopes, net.tables[k], m.gathered_y[k], m.gathered,
            m.by_y, by_distance,
        )  # fmt: skip
        add_along(by_distance, p.vectors, p.distances, gradient)
        mix(m.by_y, net.before_back[k], net.nothing, m.by_change)  # which has served
        normalise_reverse(m.normal[k], m.inverse[k], m.by_change, g, spare)
        g, spare = spare, g
    scale_parts_reverse(m.mixed, m.scalars.two.reshape(m.norms.shape), g, m.by_change, m.by_norms)
    reverse_perceptron(net.scalars, m.by_norms.reshape(flat), m.scalars, m.by_norm)
    mix(m.by_change, net.mix_back, net.nothing, spare)
    whole_norms_reverse(m.summed, m.by_norm, spare)
    to_blocks(spare, m.gathered)
    embed_pairs_reverse(
        p.pointer, p.j, p.knot, p.w, p.slopes, net.table, atoms.receiver, atoms.sender, p.angular,
        p.distances, m.gathered, gradient,
    )  # fmt: skip


class Geometry(NamedTuple):
    """Where the atoms are.

    Attributes:
        positions [N, 3], cell [B, 3, 3], system [N], pairs [2, P], shifts [P, 3]: as for
            `nnpcalc.potential.Potential.forward`.
        reach: Å; a pair nearer than the sum of its atoms' is reported [N].
    """

    positions: np.ndarray
    cell: np.ndarray
    system: np.ndarray
    pairs: np.ndarray
    shifts: np.ndarray
    reach: np.ndarray


@njit(cache=True, fastmath=False)
def _any_near(pairs, distances, reach):
    for p in range(distances.size):
        if distances[p] < reach[pairs[0, p]] + reach[pairs[1, p]]:
            return True
    return False


@njit(cache=True, fastmath=False)
def add_energies(found, scale, energies):
    """energies [N], float64, += scale times what was found."""
    for n in range(energies.size):
        energies[n] += scale * found[n]


@njit(cache=True, fastmath=False)
def add_forces(pairs, gradient, scale, forces):
    """forces [N, 3], float64, += what scale times the derivatives by the pairs' vectors says.

    Nothing is done without rows.
    """
    if not forces.shape[0]:
        return
    for p in range(gradient.shape[0]):
        i, j = pairs[0, p], pairs[1, p]
        for a in range(3):
            one = scale * gradient[p, a]
            forces[i, a] += one
            forces[j, a] -= one


@njit(cache=True, fastmath=False)
def add_virial(system, pairs, vectors, gradient, scale, virial):
    """virial [B, 3, 3], float64, += vector times scaled derivative by it, summed over the pairs.

    Nothing is done without rows.
    """
    if not virial.shape[0]:
        return
    for p in range(gradient.shape[0]):
        b = system[pairs[0, p]]
        for a in range(3):
            for c in range(3):
                virial[b, a, c] += vectors[p, a] * (scale * gradient[p, c])


@composed
def evaluate(net, atoms, where, m, scale, energies, forces, virial):
    """Adds scale times the network's to energies [N] and, where they have rows, to forces [N, 3]
    and to virial [B, 3, 3], the derivatives by a strain; all float64.

    Returns:
        vectors [P, 3], distances [P], and whether a pair is nearer than its atoms' reach.
    """
    n_atoms, n_pairs = where.system.size, where.pairs.shape[1]
    vectors = np.empty((n_pairs, 3), where.positions.dtype)
    distances = np.empty(n_pairs, where.positions.dtype)
    pair_vectors(
        where.positions, where.cell, where.system, where.pairs, where.shifts, vectors, distances
    )
    p = geometry(net.grid, where.pairs, vectors, distances, n_atoms)
    forward(net, atoms, p, m)
    add_energies(m.energies, scale, energies)
    if forces.shape[0] or virial.shape[0]:
        gradient = np.zeros_like(vectors)
        backward(net, atoms, p, m, np.ones_like(m.energies), gradient)
        add_forces(where.pairs, gradient, scale, forces)
        add_virial(where.system, where.pairs, vectors, gradient, scale, virial)
    return vectors, distances, _any_near(where.pairs, distances, where.reach)
