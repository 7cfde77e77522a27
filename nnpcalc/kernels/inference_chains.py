"""Chains of TensorNet's stages for the atoms of one worker, between points where all meet.

Neighbours' features are needed for messages only. Everything between the sum over neighbours of a
layer and the features that the next one gathers is done for a slab of atoms before another begins,
and the same in reverse. The sums themselves take a block of channels after the other for all slabs
of a worker, so that what they gather stays in the cache. A chain takes its arrays, which are
``(parameters, atoms, pairs, memory)``, by reference.

The stages are in `nnpcalc.kernels.inference_loops` (atoms), `inference_pairs` (pairs), `rows`
(channel mixing) and `perceptron`.
"""

from __future__ import annotations

from numba import njit

from nnpcalc.kernels import perceptron
from nnpcalc.kernels.inference_arrays import activations, part, slabs
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
    to_blocks,
)
from nnpcalc.kernels.reference import follow
from nnpcalc.kernels.rows import mix
from nnpcalc.kernels.simd import EXACT

run_perceptron, reverse_perceptron = perceptron.run, perceptron.reverse


@njit(fastmath=EXACT, cache=True)
def forward(k, worker, workers, work):
    """The embedding (k = 0) or layer k - 1 from the messages on, and what layer k gathers.

    After the last layer, which no other follows, the energies. A worker does its slabs.
    """
    net, atoms, p, m = follow(work)
    layers, channels, s = net.tables.shape[0], net.at_zero.shape[2], m.scratch
    size, begin, end = slabs(m.energies.size, worker, workers)
    e = k - 1
    if k:
        for block in range(net.table.shape[0]):
            for first in range(begin, end, size):
                last = min(first + size, end)
                message_pairs(
                    block, first, last, p.pointer, p.j, p.knot, p.w, net.tables[e],
                    m.gathered_y[e], part(m.message[e], first, last),
                )  # fmt: skip
    for first in range(begin, end, size):
        last = min(first + size, end)
        n = last - first
        three = (n, 3, channels)
        x = part(s.x[worker], 0, n) if k < layers else part(m.out, first, last)
        if k == 0:
            summed, mixed = part(m.summed, first, last), part(m.mixed, first, last)
            pair_geometry(
                first, last, p.pointer, p.vectors, p.distances, net.grid, p.knot, p.w, p.slopes,
                p.angular,
            )  # fmt: skip
            embed_pairs(
                first, last, p.pointer, p.j, p.knot, p.w, net.table, atoms.receiver, atoms.sender,
                atoms.self_pair, p.angular, summed,
            )  # fmt: skip
            norm, kept = s.norm[worker][:n], activations(m.scalars, first, last)
            whole_norms(summed, norm)
            run_perceptron(net.scalars, norm, kept)
            mix(summed, net.mix, net.nothing, mixed)
            scale_parts(mixed, kept.two.reshape(three), x)
        else:
            reacted, change = part(m.reacted[e], first, last), part(m.change[e], first, last)
            react(
                part(m.y[e], first, last), net.at_zero[e], atoms.product[e][first:last],
                net.symmetric, part(m.message[e], first, last),
                m.inverse_product[e][first:last], reacted,
            )  # fmt: skip
            mix(reacted, net.after[e], net.nothing, change)
            update(part(m.normal[e], first, last), change, atoms.square[e][first:last], x)
        if k < layers:
            normal, y = part(m.normal[k], first, last), part(m.y[k], first, last)
            normalise(x, normal, m.inverse[k][first:last])
            mix(normal, net.before[k], net.nothing, y)
            to_blocks(y, first, m.gathered_y[k])
        else:
            norms, kept = s.norms[worker][:n], activations(m.head, first, last)
            part_norms(x, norms.reshape(three))
            run_perceptron(net.head, norms, kept)
            weighted_sum(kept.two, net.head_weights, net.head_bias, m.energies[first:last])


@njit(fastmath=EXACT, cache=True)
def backward(k, worker, workers, work, upstream, by_distance, gradient):
    """The reverse of `forward` for k.

    From the derivatives by what layer k gathers (or by the energies: upstream [N]) to those by the
    messages of layer k - 1 (or by the vectors of pairs: gradient [P, 3]).

    gradient is added to, by_distance [P] overwritten.
    """
    net, atoms, p, m = follow(work)
    layers, channels, s = net.tables.shape[0], net.at_zero.shape[2], m.scratch
    size, begin, end = slabs(m.energies.size, worker, workers)
    e = k - 1
    if k < layers:
        for block in range(net.table.shape[0]):
            for first in range(begin, end, size):
                last = min(first + size, end)
                message_pairs_reverse(
                    block, first, last, p.pointer, p.j, p.knot, p.w, p.slopes, net.tables[k],
                    m.gathered_y[k], m.gathered[k % 2], part(m.by_y, first, last), by_distance,
                )  # fmt: skip
    for first in range(begin, end, size):
        last = min(first + size, end)
        n = last - first
        three = (n, 3, channels)
        one, two = part(s.one[worker], 0, n), part(s.two[worker], 0, n)
        by_x, by_y = part(m.by_x, first, last), part(m.by_y, first, last)
        norms = s.norms[worker][:n]
        if k == layers:
            by_scores = s.scores[worker][:n]
            weighted_sum_reverse(upstream[first:last], net.head_weights, by_scores)
            reverse_perceptron(net.head, by_scores, activations(m.head, first, last), norms)
            part_norms_reverse(part(m.out, first, last), norms.reshape(three), by_x)
        else:
            add_along(first, last, p.pointer, by_distance, p.vectors, p.distances, gradient)
            mix(by_y, net.before_back[k], net.nothing, one)
            normal, inverse = part(m.normal[k], first, last), m.inverse[k][first:last]
            normalise_reverse(normal, inverse, one, by_x, by_x)
        if k:
            update_reverse(part(m.change[e], first, last), atoms.square[e][first:last], by_x, one)
            mix(one, net.after_back[e], net.nothing, two)
            react_reverse(
                part(m.y[e], first, last), part(m.message[e], first, last), net.at_zero[e],
                atoms.product[e][first:last], net.symmetric, part(m.reacted[e], first, last),
                m.inverse_product[e][first:last], two, by_y, one,
            )  # fmt: skip
            to_blocks(one, first, m.gathered[e % 2])
        else:
            kept, norm, blocked = activations(m.scalars, first, last), s.norm[worker][:n], s.blocked
            mixed, scales = part(m.mixed, first, last), kept.two.reshape(three)
            scale_parts_reverse(mixed, scales, by_x, one, norms.reshape(three))
            reverse_perceptron(net.scalars, norms, kept, norm)
            mix(one, net.mix_back, net.nothing, two)
            whole_norms_reverse(part(m.summed, first, last), norm, two)
            to_blocks(two, 0, blocked[worker])
            embed_pairs_reverse(
                first, last, p.pointer, p.j, p.knot, p.w, p.slopes, net.table, atoms.receiver,
                atoms.sender, p.angular, p.distances, blocked[worker], gradient,
            )  # fmt: skip
