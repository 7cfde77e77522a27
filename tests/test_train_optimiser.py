"""Muon steps along orthogonal directions, and every parameter has an optimiser."""

import pytest
import torch

from nnpcalc.train.config import TrainingConfig
from nnpcalc.train.optimiser import MuonAndAdamW, optimiser
from tiny_model import make_potential


def test_a_matrix_steps_along_the_orthogonal_factor_of_its_gradient():
    layer = torch.nn.Linear(8, 6, bias=False)
    before = layer.weight.detach().clone()
    gradient = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    layer.weight.grad = gradient
    MuonAndAdamW(layer, learning_rate=0.01, weight_decay=0.0).step()
    step = before - layer.weight.detach()
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    cosine = (step * (u @ v)).sum() / (step.norm() * 6**0.5)
    assert cosine > 0.95  # the iteration, in bfloat16, leaves singular values between 0.7 and 1.2
    root_mean_square = float(step.square().mean().sqrt())
    assert root_mean_square == pytest.approx(0.2 * 0.01, rel=0.25)


def test_all_parameters_move_and_no_others():
    potential = make_potential()
    potential.core.norm.weight.requires_grad_(False)
    chosen = optimiser(potential, TrainingConfig(optimizer="muon", weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in potential.named_parameters()}
    for p in potential.parameters():
        p.grad = torch.ones_like(p)
    chosen.step()
    for name, p in potential.named_parameters():
        assert torch.equal(p, before[name]) is not p.requires_grad, name


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer = 'sgd'; known are adamw, muon"):
        TrainingConfig(optimizer="sgd")
