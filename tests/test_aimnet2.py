"""AIMNet2: against a slow transcription of its equations; its charges; reading its files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.aimnet2 import CheckpointError, load
from nnpcalc.models.aimnet2 import AIMNet2, AIMNet2Config
from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies, Coulomb
from nnpcalc.testing import check_potential

SMALL: dict[str, Any] = {
    "channels": 3,
    "layers": 3,
    "radial_functions": 4,
    "cutoff": 4.0,
    "elements": (1, 6, 8),
    "vector_combinations": 2,
    "hidden": (6, 5),
    "last_hidden": (6, 5, 4),
    "features": 7,
    "readout": (4, 3),
}


def small(**options: Any) -> AIMNet2:
    core = AIMNet2(AIMNet2Config(**{**SMALL, **options}))
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return core.double()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + torch.erf(torch.tensor(x / np.sqrt(2.0))).numpy())


def perceptron(mlp: nn.Sequential, x: np.ndarray, last_linear: bool) -> np.ndarray:
    layers = [module for module in mlp if isinstance(module, nn.Linear)]
    for k, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if k < len(layers) - 1 or not last_linear:
            x = gelu(x)
    return x


def slow(core: AIMNet2, atoms: Atoms, totals: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Energies [n] and charges [n, C] of an open system, atom by atom and pair by pair."""
    c = core.config
    n, a_, g_, h_ = len(atoms), c.channels, c.radial_functions, c.vector_combinations
    r = atoms.positions
    step = (c.cutoff - c.first_shift) / g_
    a = core.element.detach().numpy()[[c.elements.index(z) for z in atoms.numbers]]
    q = np.zeros((n, len(totals)))

    def convolution(features: np.ndarray, mix: Tensor) -> np.ndarray:
        rows = []
        for i in range(n):
            scalar = np.zeros((features.shape[1], g_))
            vector = np.zeros((features.shape[1], g_, 3))
            for j in range(n):
                d = np.linalg.norm(r[j] - r[i])
                if i == j or d >= c.cutoff:
                    continue
                for g in range(g_):
                    gap = (d - c.first_shift - g * step) / step
                    value = np.exp(-gap * gap) * 0.5 * (np.cos(np.pi * d / c.cutoff) + 1.0)
                    for f in range(features.shape[1]):
                        feature = features[j, f, min(g, features.shape[2] - 1)]
                        scalar[f, g] += feature * value
                        vector[f, g] += feature * value * (r[j] - r[i]) / d
            mixed = np.einsum("fgd,fgh->fhd", vector, mix.detach().numpy())
            rows.append(np.concatenate([scalar.ravel(), (mixed**2).sum(-1).ravel()]))
        return np.array(rows)

    for k, mlp in enumerate(core.passes):
        x = np.concatenate([a.reshape(n, -1), convolution(a, core.feature_convolution.mix)], axis=1)
        if k:
            charges = convolution(q[:, :, None], core.charge_convolution.mix)
            x = np.concatenate([x, q, charges], axis=1)
        out = perceptron(mlp, x, last_linear=k == 0)
        if k == len(core.passes) - 1:
            break
        channels = len(totals)
        raw, f = q + out[:, :channels], out[:, channels : 2 * channels] ** 2
        q = raw + f / f.sum(0) * (np.array(totals) - raw.sum(0))
        a = a + out[:, 2 * channels :].reshape(n, a_, g_)
    assert h_ == core.feature_convolution.mix.shape[2]
    return perceptron(core.readout, out, last_linear=True)[:, 0], q


@pytest.mark.parametrize(("charge", "layers"), [(0, 3), (-1, 2), (1, 4)])
def test_closed_shells_against_the_equations(charge: int, layers: int) -> None:
    core = small(layers=layers)
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=charge, spin=1 + abs(charge))
    results = Potential(core).evaluate(AtomsBatch.from_atoms(atoms))
    energies, charges = slow(core, atoms, [float(charge)])
    assert results.energies.tolist() == pytest.approx(energies.tolist(), abs=1e-12)
    assert results.charges.tolist() == pytest.approx(charges[:, 0].tolist(), abs=1e-12)
    assert float(results.charges.sum()) == pytest.approx(charge, abs=1e-13)


@pytest.mark.parametrize(("charge", "multiplicity"), [(0, 1), (0, 3), (1, 2), (-1, 4)])
def test_open_shells_against_the_equations(charge: int, multiplicity: int) -> None:
    core = small(open_shell=True)
    atoms = molecule("H2CO")
    atoms.info.update(charge=charge, spin=multiplicity)
    batch = AtomsBatch.from_atoms(atoms)
    results = Potential(core).evaluate(batch)
    unpaired = multiplicity - 1
    energies, charges = slow(core, atoms, [(charge + unpaired) / 2.0, (charge - unpaired) / 2.0])
    assert results.energies.tolist() == pytest.approx(energies.tolist(), abs=1e-12)
    assert results.charges.tolist() == pytest.approx(charges.sum(1).tolist(), abs=1e-12)
    assert float((charges[:, 0] - charges[:, 1]).sum()) == pytest.approx(unpaired)


def test_open_shells_satisfy_the_contract() -> None:
    checks = ("rotation", "forces", "batch", "atom", "conditions", "torchscript")
    core = small(open_shell=True, layers=2)
    assert core.conditions_on == ("charge", "multiplicity")
    check_potential(Potential(core, (AtomicEnergies({1: -13.6}),)), checks=checks)


def test_two_molecules_may_exchange_charge_but_not_distance() -> None:
    """The charges of a system are equilibrated whatever its extent; positions are not felt."""
    potential = Potential(small())
    pair = [molecule("H2O") + molecule("CH3OH") for _ in range(2)]
    for atoms, distance in zip(pair, (40.0, 80.0), strict=True):
        atoms.positions[3:, 0] += distance
    near, far = (potential.evaluate(AtomsBatch.from_atoms(atoms)) for atoms in pair)
    alone = potential.evaluate(AtomsBatch.from_atoms(molecule("H2O")))
    assert float(near.energy) == pytest.approx(float(far.energy), abs=1e-12)
    assert abs(float(near.charges[:3].sum())) > 1e-4
    assert abs(float(alone.charges.sum())) < 1e-14
    assert not potential.core.additive


def test_published_size() -> None:
    core = AIMNet2(AIMNet2Config())
    assert sum(p.numel() for p in core.passes.parameters()) == 2_136_308
    assert sum(p.numel() for p in core.readout.parameters()) == 49_537
    assert core.element.shape == (14, 16, 16)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": 1}, "at least 2 layers"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"hidden": (5, 0)}, r"hidden must be at least 1, got \(5, 0\)"),
        ({"first_shift": 4.0}, "the cutoff the larger"),
        ({"elements": (1, 1)}, "listed twice"),
        ({"elements": (0,)}, "atomic numbers"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AIMNet2Config(**{**SMALL, **options})


# --- files ---------------------------------------------------------------------------------------


class Holder(nn.Module):
    """Parameters and modules under the names of a published file; computes nothing."""

    def __init__(self, parameters: dict[str, Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value.detach().clone(), requires_grad=False))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Numbers(Holder):
    """The same with the parameters of D3."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__(parameters)
        self.s6, self.s8, self.a1, self.a2 = 1.0, 0.39, 0.57, 3.1


def d3_table() -> Tensor:
    table = torch.zeros(9, 9, 5, 5, 3)
    table[..., 0] = 20.0
    references = torch.tensor([0.0, 1.0, -1.0, -1.0, -1.0])
    table[..., 1], table[..., 2] = references[:, None], references[None, :]
    return table


def published(core: AIMNet2) -> Holder:
    """A network as the authors' program keeps it."""
    c = core.config
    centres = c.first_shift + core.step * torch.arange(c.radial_functions)
    eta, r_c = torch.tensor(core.step**-2), torch.tensor(c.cutoff)
    radial = {"rc": r_c, "eta": eta, "shifts": centres}
    both = {f"{name}_{kind}": value for name, value in radial.items() for kind in "sv"}
    table = torch.randn(9, c.channels * c.radial_functions)
    table[list(c.elements)] = core.element.detach().flatten(1).float()
    shifts = torch.zeros(9, 1)
    shifts[list(c.elements), 0] = torch.tensor([-13.0, -1030.0, -2040.0])
    ones = torch.ones(9)
    outputs = nn.ModuleDict(
        {
            "energy_mlp": Holder({}, mlp=core.readout),
            "atomic_shift": Holder({}, shifts=Holder({"weight": shifts})),
            "lrcoulomb": Holder({"rc": torch.tensor(3.5)}),
            "d3bj": Numbers({"c6ab": d3_table(), "r4r2": 2.0 * ones, "rcov": ones, "cnmax": ones}),
        }
    )
    return Holder(
        {},
        aev=Holder(both),
        afv=Holder({"weight": table}),
        conv_a=Holder({"agh": core.feature_convolution.mix}),
        conv_q=Holder({"agh": core.charge_convolution.mix}),
        mlps=core.passes,
        outputs=outputs,
    )


def write(program: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(program.float()).save(path)
    return path


@pytest.fixture
def core() -> AIMNet2:
    return small()


def expected(core: AIMNet2, batch: AtomsBatch) -> Tensor:
    terms = (AtomicEnergies({1: -13.0, 6: -1030.0, 8: -2040.0}), Coulomb("exponential", 3.5))
    return Potential(core, terms).to(torch.float64).evaluate(batch).energy


def test_torchscript_files(core: AIMNet2, tmp_path: Path) -> None:
    path = write(published(core), tmp_path / "model.jpt")
    with pytest.raises(CheckpointError, match="pass trust=True"):
        load(path)
    potential = load(path, trust=True, dtype=torch.float64)
    assert potential.core.config == core.config
    assert potential.card == {"name": "model", "multiplicities": [1]}
    batch = AtomsBatch.from_atoms([molecule("CH3CH2OH"), molecule("CO")])
    found = potential.evaluate(batch).energy
    dispersion = potential.terms[2]
    assert dispersion.elements == (1, 6, 8) and dispersion.s8 == pytest.approx(0.39)
    assert float(dispersion.c6[0, 0, 1, 1]) == 20.0 and float(dispersion.c6[0, 0, 2, 1]) == 0.0
    assert dispersion.coordination[1].tolist() == [0.0, 1.0, -1.0, -1.0, -1.0]
    potential.terms = potential.terms[:2]
    potential.term_cutoffs = potential.term_cutoffs[:2]
    without = potential.evaluate(batch).energy
    assert torch.allclose(without, expected(core, batch), rtol=0.0, atol=1e-6)
    assert (found < without).all()


def test_ensembles(tmp_path: Path) -> None:
    cores = [small(), small()]
    members = nn.ModuleList([published(core) for core in cores])
    path = write(Holder({}, models=members), tmp_path / "ensemble.jpt")
    batch = AtomsBatch.from_atoms(molecule("CH3CH2OH"), dtype=torch.float32)
    for k, core in enumerate(cores):
        found = load(path, trust=True, member=k).core
        assert torch.equal(found.element, core.element)
        charges = Potential(found).evaluate(batch).charges
        assert torch.equal(charges, Potential(core.float()).evaluate(batch).charges)
    with pytest.raises(CheckpointError, match="holds 2 networks: there is no member 2"):
        load(path, trust=True, member=2)


def dictionary(core: AIMNet2, **changes: Any) -> dict[str, Any]:
    """What the authors' program exports since 0.1."""
    state = published(core.float()).state_dict()
    kept = {k: v for k, v in state.items() if "d3bj" not in k and "lrcoulomb" not in k}
    kept["outputs.srcoulomb.rc"] = torch.tensor(3.5)
    return {
        "state_dict": kept,
        "coulomb_mode": "sr_embedded",
        "coulomb_sr_rc": 3.5,
        "coulomb_sr_envelope": "exp",
        "needs_dispersion": False,
        "implemented_species": [1, 6, 8],
        **changes,
    }


def test_exported_dictionaries(core: AIMNet2, tmp_path: Path) -> None:
    torch.save(dictionary(core), tmp_path / "model.pt")
    potential = load(tmp_path / "model.pt", dtype=torch.float64)
    batch = AtomsBatch.from_atoms([molecule("CH3CH2OH"), molecule("CO")])
    found = potential.evaluate(batch).energy
    assert torch.allclose(found, expected(core, batch), rtol=0.0, atol=1e-6)
    with pytest.raises(CheckpointError, match="not an ensemble"):
        load(tmp_path / "model.pt", member=1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"has_embedded_d3ts": True}, "learned dispersion"),
        ({"coulomb_sr_envelope": "cosine"}, "envelope 'cosine' is not supported"),
        ({"coulomb_mode": "full"}, "Coulomb energy 'full' is not supported"),
        ({"needs_dispersion": True, "d3_params": {"s8": 0.3}}, "lacks its a1, a2"),
        ({"implemented_species": [1, 6, 8, 17]}, "are not in its embedding"),
    ],
)
def test_dictionaries_that_cannot_be_read(
    core: AIMNet2, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    torch.save(dictionary(core, **changes), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=text):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("conv_a.agh", None, "lacks conv_a.agh"),
        ("mlps.0.0.weight", torch.zeros(6, 3), "passes.0.0.weight is"),
        ("mlps.1.0.bias", torch.full((6,), torch.nan), "passes.1.0.bias is not finite"),
        ("aev.eta_s", torch.tensor(9.0), "radial functions of their own"),
        ("outputs.solvation.weight", torch.zeros(3), "no counterpart of solvation"),
        ("aev.shifts_s", torch.tensor([0.8, 1.0, 2.0, 3.0]), "of their own"),
    ],
)
def test_parameters_that_do_not_fit(
    core: AIMNet2, tmp_path: Path, name: str, value: Tensor | None, text: str
) -> None:
    content = dictionary(core)
    if value is None:
        del content["state_dict"][name]
    else:
        content["state_dict"][name] = value
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=text):
        load(tmp_path / "model.pt")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "text.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no model that aimnet exported"):
        load(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"not torch\.float16"):
        load(tmp_path / "other.pt", dtype=torch.float16)
