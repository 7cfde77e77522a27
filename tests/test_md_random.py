"""Counter-based random numbers: published answers, distribution, independence of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnpcalc.md.random import Noise, checked_seed, normal, normals, philox

# Random123 (Salmon et al.), kat_vectors: philox4x32, 10 rounds.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """The same with Python's integers, which never overflow."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0, second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1, first & 0xFFFFFFFF,
        )  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_published_answers(counter: str, key: str, answer: str) -> None:
    low, high = words(key)
    found = philox(tuple(torch.tensor([w]) for w in words(counter)), (low, high))  # type: ignore[arg-type]
    assert [int(word) for word in found] == words(answer)


def test_against_unbounded_integers() -> None:
    rng = np.random.default_rng(1)
    counters = rng.integers(0, 1 << 32, size=(4, 200))
    found = philox(tuple(torch.from_numpy(c) for c in counters), (123456789, 4000000000))  # type: ignore[arg-type]
    for k in range(200):
        expected = scalar_philox(counters[:, k].tolist(), [123456789, 4000000000])
        assert [int(word[k]) for word in found] == expected


def test_normals_are_normal() -> None:
    stats = pytest.importorskip("scipy.stats")
    n = 4_000
    numbers = normals(7, torch.zeros(n).long(), torch.arange(n), torch.arange(10)).flatten()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3
    assert float(numbers.mean()) == pytest.approx(0.0, abs=4 * len(numbers) ** -0.5)
    # a correlation between the words of a block, the steps or the atoms
    cube = numbers.reshape(10, n, 3)
    for a, b in (
        (cube[..., 0], cube[..., 1]),
        (cube[..., 1], cube[..., 2]),
        (cube[:-1], cube[1:]),
        (cube[:, :-1], cube[:, 1:]),
    ):
        assert float((a * b).mean()) == pytest.approx(0.0, abs=4 * a.numel() ** -0.5)


def test_extreme_words_are_finite_and_symmetric() -> None:
    ends = torch.tensor([0, 0xFFFFFFFF])
    low, high = normal(ends, ends)
    assert float(low) == -float(high) == pytest.approx(-8.2095361516)


def test_numbers_go_by_their_address_alone() -> None:
    replica = torch.tensor([3, 3, 8, 8, 8])
    atom = torch.tensor([0, 1, 0, 1, 2])
    together = normals(5, replica, atom, torch.tensor([9, 10]), stream=2)
    alone = normals(5, replica[2:], atom[2:], 10, stream=2)
    assert torch.equal(together[1, 2:], alone[0])
    others = [
        normals(6, replica, atom, 9, 2), normals(5, replica + 1, atom, 9, 2),
        normals(5, replica, atom, 9, 1), normals(5, replica, atom + 3, 9, 2),
        normals(5 + (1 << 32), replica, atom, 9, 2), normals(5, replica, atom, 9 + (1 << 32), 2),
    ]  # fmt: skip
    assert all(not (other[0] == together[0]).any() for other in others)


def test_noise_is_only_a_memory() -> None:
    replica, atom, noise = torch.zeros(4).long(), torch.arange(4), Noise(1)
    for step in (0, 1, 5000, 2, 2, 1 << 40):
        assert torch.equal(noise.at(3, replica, atom, step), normals(3, replica, atom, step, 1)[0])
    assert torch.equal(noise.at(4, replica, atom, 2), normals(4, replica, atom, 2, 1)[0])


def test_seeds() -> None:
    assert checked_seed(5) == 5 and checked_seed(np.int64(7)) == 7
    assert checked_seed(None) != checked_seed(None)
    for bad in (-1, 1 << 64, 0.5):
        with pytest.raises(ValueError, match="seed"):
            checked_seed(bad)  # type: ignore[arg-type]
