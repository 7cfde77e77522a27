"""Random numbers that are a function of their address: seed, replica, step and atom.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC11
(2011), doi:10.1145/2063384.2063405) turns a counter of four 32-bit words under a key of two into
four random words. Nothing is stored between two calls, so a trajectory gets the same numbers alone
or in any batch, and after a restart.

The address of a block of four words::

    key        seed, low and high word
    counter 0  atom within its system
    counter 1  replica
    counter 2  step, low word
    counter 3  step, high 16 bits << 16  |  stream << 4  |  block
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nnpcalc.md import loops
from nnpcalc.state import as_integer

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

#: What a random number is for. Numbers of different streams are independent.
STREAM_START, STREAM_THERMOSTAT, STREAM_BAROSTAT, STREAM_INNER = 0, 1, 2, 3

#: Numbers made ahead in one go: the 120 tensor operations of a block cost 0.3 ms whatever its size.
AHEAD = 1 << 15

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words of 32 bits for every counter.

    Args:
        counter: four int64 tensors of values 0 .. 2^32 - 1, of shapes that broadcast.
        key: two words.

    Returns:
        Four int64 tensors of values 0 .. 2^32 - 1.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        # the product of two words fills 64 bits; int64 wraps, which leaves every bit in its place
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & MASK) ^ c1 ^ k0,
            second & MASK,
            ((first >> 32) & MASK) ^ c3 ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def normal(high: Tensor, low: Tensor) -> Tensor:
    """Normal numbers, float64, from two random words each, by the inverse distribution function.

    The 52 leading bits are the uniform number (k + 1/2) / 2^52, exact in float64 and never 0 or 1;
    the largest normal number is 8.2.
    """
    k = (high << 20) | (low >> 12)
    return torch.special.ndtri((2 * k + 1).to(torch.float64) * 2.0**-53)


def normals(
    seed: int, replica: Tensor, atom: Tensor, steps: Tensor | int, stream: int = STREAM_START
) -> Tensor:
    """Three independent normal numbers for every step and atom.

    Args:
        seed: 0 .. 2^64 - 1.
        replica: int64 [N], replica of each atom, 0 .. 2^32 - 1.
        atom: int64 [N], place of each atom in its system.
        steps: int64 [S], or one step number, 0 .. 2^48 - 1.
        stream: purpose, 0 .. 4095.

    Returns:
        float64 [S, N, 3].
    """
    many = torch.as_tensor(steps, dtype=torch.int64, device=atom.device).reshape(-1, 1, 1)
    if atom.is_cpu:
        numbers = np.empty((len(many), len(atom), 3))
        when, who, where = (t.numpy().reshape(-1).view(np.uint64) for t in (many, replica, atom))
        low, high, purpose = np.array([seed & MASK, seed >> 32, stream], np.uint64)
        loops.uniform(low, high, when, who, where, purpose, numbers)
        return torch.special.ndtri(torch.from_numpy(numbers))
    block = torch.arange(2, device=atom.device)[None, None, :]
    counter = (
        atom[None, :, None],
        replica[None, :, None],
        many & MASK,
        ((many >> 32) << 16) | (stream << 4) | block,
    )
    w0, w1, w2, w3 = philox(counter, (seed & MASK, seed >> 32))
    pairs = torch.stack((normal(w0, w1), normal(w2, w3)), -1)  # [S, N, 2 blocks, 2]
    return pairs.flatten(2)[..., :3]


@dataclass
class Noise:
    """The normal numbers of one stream, step after step, made for many steps ahead.

    A memory of what `normals` returns and nothing more: asking in any order gives the same numbers.
    """

    stream: int
    _owner: tuple[int, Tensor, Tensor] | None = field(default=None, repr=False)
    _first: int = field(default=0, repr=False)
    _block: Tensor | None = field(default=None, repr=False)
    _rows: tuple[Tensor, ...] = field(default=(), repr=False)

    def at(self, seed: int, replica: Tensor, atom: Tensor, step: int) -> Tensor:
        """Numbers [N, 3] of a step; replica and atom as in `normals`."""
        self._have(seed, replica, atom, step)
        return self._rows[step - self._first]

    def span(self, seed: int, replica: Tensor, atom: Tensor, step: int, steps: int) -> Tensor:
        """Numbers [S, N, 3] of one to so many steps from one on."""
        self._have(seed, replica, atom, step)
        assert self._block is not None
        return self._block[step - self._first :][:steps]

    def _have(self, seed: int, replica: Tensor, atom: Tensor, step: int) -> None:
        """Make the numbers of a step and those after it, unless they are there."""
        owner = self._owner
        known = owner is not None and owner[0] == seed and owner[1] is replica and owner[2] is atom
        if not known or not self._first <= step < self._first + len(self._rows):
            ahead = max(1, AHEAD // max(1, 6 * atom.shape[0]))
            steps = torch.arange(step, step + ahead, device=atom.device)
            # taken apart at once, which is cheaper than a row in every step
            self._block = normals(seed, replica, atom, steps, self.stream)
            self._rows = self._block.unbind()
            self._owner, self._first = (seed, replica, atom), step


def checked_seed(seed: int | None) -> int:
    """The seed, or one from the operating system if none is given.

    Raises:
        ValueError: not an integer of 0 .. 2^64 - 1.
    """
    if seed is None:
        return secrets.randbits(48)
    number = seed if type(seed) is int else as_integer(seed, "the seed")
    if not 0 <= number < 1 << 64:
        raise ValueError(f"the seed must lie in 0 .. 2^64 - 1, not {seed}")
    return number
