"""ANI: the network against loops over atoms, the importer against files made here and published."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

import small_ani
from nnpcalc.batch import AtomsBatch
from nnpcalc.calculator import ExtrapolationError, ExtrapolationWarning, NNPCalculator
from nnpcalc.cards import describe
from nnpcalc.interop.ani import CheckpointError, load
from nnpcalc.models import build_core
from nnpcalc.models.ani2x import ANI2x, ANI2xConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies
from nnpcalc.testing import check_potential
from nnpcalc.units import HARTREE

#: NeuroChem's directory of member 0 of ANI-2x; not part of the project.
PUBLISHED = os.environ.get("NNPCALC_ANI_DIRECTORY", "")


def batch_of(*structures: Atoms) -> AtomsBatch:
    return AtomsBatch.from_atoms(structures, dtype=torch.float64)


def crystal() -> Atoms:
    """Smaller than the cutoff: atoms see images of themselves."""
    cell = [[3.4, 0.0, 0.0], [0.6, 3.6, 0.0], [-0.4, 0.5, 3.3]]
    atoms = Atoms("CHO", [(0.1, 0.0, 0.2), (1.1, 0.3, 0.1), (0.4, 1.9, 1.7)], cell=cell, pbc=True)
    atoms.info["spin"] = 2
    return atoms


# --- the network against loops --------------------------------------------------------------------


def celu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0.0, x, 0.1 * np.expm1(np.minimum(x, 0.0) / 0.1))


def environment_vector(config: ANI2xConfig, neighbors: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Smith 2017, eqs. 2 to 4, from the elements and vectors of an atom's neighbours."""

    def switch(d: float, cutoff: float) -> float:
        return 0.5 * math.cos(math.pi * d / cutoff) + 0.5 if d < cutoff else 0.0

    n = len(config.elements)
    radial = np.zeros((n, config.radial_functions))
    for z, r in neighbors:
        d = float(np.linalg.norm(r))
        for k in range(config.radial_functions):
            s = config.first_shift + k * (config.cutoff - config.first_shift) / len(radial[0])
            value = math.exp(-config.radial_width * (d - s) ** 2) * switch(d, config.cutoff)
            radial[config.elements.index(z), k] += 0.25 * value
    pairs = [(a, b) for a in range(n) for b in range(n) if a <= b]
    angular = np.zeros((len(pairs), config.angular_functions, config.angles))
    for one in range(len(neighbors)):
        for two in range(one):
            (z1, r1), (z2, r2) = neighbors[one], neighbors[two]
            d1, d2 = np.linalg.norm(r1), np.linalg.norm(r2)
            theta = math.acos(0.95 * float(r1 @ r2) / (d1 * d2))
            fc = switch(d1, config.angular_cutoff) * switch(d2, config.angular_cutoff)
            which = pairs.index(tuple(sorted(map(config.elements.index, (z1, z2)))))
            for a in range(config.angular_functions):
                step = (config.angular_cutoff - config.first_shift) / config.angular_functions
                gap = 0.5 * (d1 + d2) - config.first_shift - a * step
                for t in range(config.angles):
                    angle = math.pi * (t + 0.5) / config.angles
                    power = (0.5 * (1.0 + math.cos(theta - angle))) ** config.angle_exponent
                    angular[which, a, t] += (
                        2.0 * power * math.exp(-config.angular_width * gap**2) * fc
                    )
    return np.concatenate([radial.ravel(), angular.ravel()])


def energies_by_loops(core: ANI2x, atoms: Atoms) -> np.ndarray:
    """Energy of each member and atom [M, N]."""
    batch = batch_of(atoms)
    found = neighbor_list(batch, core.cutoff)
    result = np.zeros((core.members, len(atoms)))
    for i, z in enumerate(atoms.numbers):
        mine = [p for p in range(found.pairs.shape[1]) if int(found.pairs[0, p]) == i]
        neighbors = [
            (int(atoms.numbers[int(found.pairs[1, p])]), found.vectors[p].numpy()) for p in mine
        ]
        network = core.networks[core.elements.index(int(z))]
        for member in range(core.members):
            x = environment_vector(core.config, neighbors)
            for k in range(0, len(network), 2):
                x = network[k].weight[member].detach().numpy() @ x
                x = x + network[k].bias[member].detach().numpy()
                x = celu(x) if k < len(network) - 1 else x
            result[member, i] = x[0]
    return result


@pytest.mark.parametrize("atoms", [molecule("CH3CHO"), crystal()], ids=["molecule", "crystal"])
def test_energies_are_those_of_the_equations(atoms: Atoms) -> None:
    options = {"elements": (6, 1, 8), "members": 2, "hidden": ((9, 5), (7,), ())}
    core = build_core("ani2x", {**options, "first_shift": 0.7, "angles": 3}).to(torch.float64)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.copy_(torch.randn_like(parameter))
    expected = energies_by_loops(core, atoms)
    assert np.abs(expected).min() > 1e-3
    batch = batch_of(atoms)
    found = neighbor_list(batch, core.cutoff)
    arguments = (batch.numbers, found.pairs, found.vectors, found.distances, batch.system)
    state = (batch.charge.double(), batch.multiplicity.double())
    members = core.member_energies(*arguments, *state).detach().numpy()
    np.testing.assert_allclose(members, expected, rtol=0, atol=1e-10)
    mean = core(*arguments, *state)["energies"].detach().numpy()
    np.testing.assert_allclose(mean, expected.mean(0), rtol=0, atol=1e-10)


def test_published_sizes() -> None:
    one, eight = ANI2x(ANI2xConfig()), ANI2x(ANI2xConfig(members=8))
    assert one.environment.radial_size == 112
    assert one.environment.angular_size == 896
    assert sum(p.numel() for p in one.parameters()) == 1_713_223
    assert sum(p.numel() for p in eight.parameters()) == 13_705_784


def test_the_published_network_satisfies_the_contract() -> None:
    # not "forces": CELU's second derivative jumps, which differences of 1e-3 Å notice
    checks = ("rotation", "momentum", "batch", "cutoff", "elements", "conditions", "torchscript")
    core = build_core("ani2x", {"elements": (1, 6, 8), "hidden": ((16, 8),), "members": 2})
    check_potential(Potential(core, scale=1.7), checks=checks)
    assert core.conditions_on == ()


def test_forces_of_the_published_activation() -> None:
    core = build_core("ani2x", {"elements": (1, 6, 8), "hidden": ((16, 8),)})
    potential = Potential(core).to(torch.float64)
    atoms = molecule("CH3CHO")
    forces = potential.evaluate(batch_of(atoms)).forces
    assert forces is not None
    assert float(forces.abs().max()) > 1e-2
    step = 1e-6
    for i, axis in ((0, 0), (1, 2), (4, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, axis] += sign * step
            energies.append(float(potential.evaluate(batch_of(moved), forces=False).energy))
        slope = (energies[0] - energies[1]) / (2.0 * step)
        assert float(forces[i, axis]) == pytest.approx(-slope, abs=1e-8)


# --- states ---------------------------------------------------------------------------------------


def test_other_states_are_refused() -> None:
    potential = Potential(build_core("ani2x", {"hidden": ((4,),)}))
    calculator = NNPCalculator(potential, device="cpu")
    water = molecule("H2O")
    water.calc = calculator
    assert np.isfinite(water.get_potential_energy())
    water.info["charge"] = 2
    with pytest.raises(ExtrapolationError, match=r"charge 2 is outside of what ANI2x"):
        water.get_potential_energy()
    water.info.update(charge=0, spin=3)
    with pytest.raises(ExtrapolationError, match=r"multiplicity 3 is outside of what ANI2x"):
        water.get_potential_energy()
    # nor does a card that lists more change what the network knows
    potential.card = {"charges": [0, 2], "multiplicities": [1, 3]}  # type: ignore[assignment]
    warned = NNPCalculator(potential, device="cpu", on_extrapolation="warn")
    with pytest.warns(ExtrapolationWarning, match="multiplicity 3"):
        warned.get_potential_energy(water)


def test_a_network_that_sees_the_state_takes_them() -> None:
    embedded = ("charge", "unpaired_electrons")
    potential = Potential(build_core("ani2x", {"hidden": ((4,),), "state_embedding": embedded}))
    assert potential.core.conditions_on == ("charge", "multiplicity")
    calculator = NNPCalculator(potential, device="cpu")
    energies = []
    for charge, multiplicity in ((0, 1), (2, 1), (0, 3)):
        water = molecule("H2O")
        water.info.update(charge=charge, spin=multiplicity)
        energies.append(calculator.get_potential_energy(water))
    assert len({round(energy, 6) for energy in energies}) == 3


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cutoff": 3.0}, "angular_cutoff <= cutoff"),
        ({"first_shift": 3.5}, "first_shift < angular_cutoff"),
        ({"radial_width": 0.0}, "radial_width must be above 0"),
        ({"hidden": ((8,), (8,))}, "a tuple for each of the 7 elements"),
        ({"hidden": ((0,),)}, "sizes of at least 1"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"members": 0}, "members must be at least 1"),
        ({"elements": (1, 1)}, "listed twice"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_core("ani2x", options)


def test_the_configuration_survives_json() -> None:
    potential = Potential(build_core("ani2x", {"elements": (6, 1), "hidden": [[3, 2], [4]]}))
    card = describe(potential)
    assert card["config"]["hidden"] == [[3, 2], [4]]
    assert asdict(build_core("ani2x", card["config"]).config) == asdict(potential.core.config)


# --- the importer ---------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return small_ani.write_directory(tmp_path / "ani")


def test_neurochem_directory(directory: Path) -> None:
    potential = load(directory, dtype=torch.float64)
    core = potential.core
    assert core.config.elements == (1, 6, 8)
    assert core.config.hidden == ((6, 5), (7, 4), (5,))
    assert (core.cutoff, core.config.angular_cutoff, core.members) == (4.8, 3.2, 2)
    water = molecule("H2O")
    networks = energies_by_loops(core, water).mean(0).sum()
    expected = (networks + small_ani.ENERGIES["O"] + 2.0 * small_ani.ENERGIES["H"]) * HARTREE
    found = float(potential.evaluate(batch_of(water)).energy)
    assert found == pytest.approx(expected, abs=1e-10)
    # the weights are those of the files, row by row
    weight, bias = small_ani.layers("O", 1)[0]
    assert torch.equal(core.networks[2][0].weight[1].float(), weight)
    assert torch.equal(core.networks[2][0].bias[1].float(), bias)


def test_one_member_of_an_ensemble(directory: Path) -> None:
    ethanol = batch_of(molecule("CH3CH2OH"))
    alone = [load(directory, member=k, dtype=torch.float64).evaluate(ethanol) for k in (0, 1)]
    both = load(directory, dtype=torch.float64).evaluate(ethanol)
    assert abs(float(alone[0].energy - alone[1].energy)) > 1e-3
    mean = 0.5 * (alone[0].energy + alone[1].energy)
    torch.testing.assert_close(both.energy, mean, rtol=0, atol=1e-9)
    with pytest.raises(CheckpointError, match="holds 2 networks: no member 2"):
        load(directory, member=2)


@pytest.mark.parametrize("old", [False, True], ids=["2.9", "2.2"])
def test_torchani_state_dict(directory: Path, tmp_path: Path, old: bool) -> None:
    torch.save(small_ani.state_dict(old=old), tmp_path / "ani.pt")
    batch = batch_of(molecule("CH3CH2OH"))
    found = load(tmp_path / "ani.pt", dtype=torch.float64)
    expected = load(directory, dtype=torch.float64)
    assert found.core.config == expected.core.config
    torch.testing.assert_close(
        found.evaluate(batch).energy, expected.evaluate(batch).energy, rtol=0, atol=1e-9
    )
    one = load(small_ani.state_dict(members=1, old=old), dtype=torch.float64)
    first = load(directory, member=0, dtype=torch.float64)
    torch.testing.assert_close(
        one.evaluate(batch).energy, first.evaluate(batch).energy, rtol=0, atol=1e-9
    )


def edit_params(old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = next(directory.glob("*.params"))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def in_networks(name: str, data: bytes | None) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "train1" / "networks" / name
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (edit_params("Rca = 3.2000e+00\n", ""), "lacks Rca"),
        (edit_params("[H,C,O]", "[H,C,Qq]"), "'Qq' is no element"),
        (edit_params("1.6000000e+01", "nan"), "no list of numbers"),
        (edit_params("2.3561945e+00", "2.4561945e+00"), "not centred evenly"),
        (edit_params("[1.6000000e+01]", "[16.0,8.0]"), "EtaR has 2 values"),
        (edit_params("3.2000000e+00,4.0", "3.1000000e+00,4.0"), "ShfR is not evenly spaced"),
        (lambda d: (d / "sae_linfit.dat").write_text("H,0=-0.6\n"), "no energy of C, O"),
        (lambda d: (d / "sae_linfit.dat").unlink(), "cannot read .*sae_linfit.dat"),
        (lambda d: (d / "second.params").write_text(""), "holds 2 .params files"),
        (in_networks("ANN-C.nnf", None), "cannot read .*ANN-C.nnf"),
        (in_networks("ANN-C.nnf", b"12=\nnothing"), "is not NeuroChem's"),
        (in_networks("ANN-C.nnf-l1.wparam", bytes(8)), "8 bytes, .* float32 take"),
        (in_networks("ANN-C.nnf-l2.bparam", b"\xff" * 16), "not finite"),
        (lambda d: small_ani.write_directory(d, activation=5), "activation function 5"),
    ],
)
def test_damaged_directories(directory: Path, damage: Callable[[Path], object], text: str) -> None:
    damage(directory)
    with pytest.raises(CheckpointError, match=text):
        load(directory)


def test_a_network_cannot_name_files_elsewhere(directory: Path) -> None:
    import bz2

    path = directory / "train0" / "networks" / "ANN-H.nnf"
    text = bz2.decompress(path.read_bytes().split(b"\n", 1)[1])
    path.write_bytes(b"1=\n" + bz2.compress(text.replace(b"FILE:ANN", b"FILE:../ANN")))
    with pytest.raises(CheckpointError, match="names no files of weights"):
        load(directory)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("energy_shifter.self_energies"), "lacks .*self_energies"),
        (lambda s: s.pop("potentials.nnp.aev_computer.radial.eta"), "lacks EtaR"),
        (lambda s: s.update({"potentials.repulsion_xtb.alpha": torch.ones(3)}), "no counterpart"),
        (lambda s: s.update(atomic_numbers=torch.tensor([1, 6, 7])), "has the elements"),
        (lambda s: s.update(epoch=3), "no named tensor"),
        (
            lambda s: s.pop("potentials.nnp.neural_networks.members.1.atomics.C.layers.0.bias"),
            "lacks its weight or bias",
        ),
    ],
)
def test_damaged_state_dicts(change: Callable[[dict[str, Any]], object], text: str) -> None:
    state = small_ani.state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=text):
        load(state)


def test_not_a_state_dict(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="neither NeuroChem's directory nor"):
        load(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match=r"holds 0 \.params files"):
        load(tmp_path)


# --- the published weights ------------------------------------------------------------------------

METHANE = [
    (0.03192167, 0.00638559, 0.01301679),
    (-0.83140486, 0.39370209, -0.26395324),
    (-0.66518241, -0.84461308, 0.20759389),
    (0.45554739, 0.54289633, 0.81170881),
    (0.66091919, -0.16799635, -0.91037834),
]
#: TorchANI 2.9.0 with these files in float64: energy in Hartree, forces on some atoms in Hartree/Å.
REFERENCE = [
    (
        Atoms("OH2", [(0, 0, 0.1193), (0, 0.7632, -0.4770), (0, -0.7632, -0.4770)]),
        -76.38827013645026,
        [
            (0.0, 0.0, -0.010239485202004163),
            (0.0, -0.007062128573685152, 0.0051197426010020815),
            (0.0, 0.007062128573685152, 0.0051197426010020815),
        ],
    ),
    (
        Atoms("CH4", METHANE),
        -40.45976616270242,
        [(0.048504339739442855, -0.13044787863008409, -0.05247186262209541)],
    ),
]


def rounded_as_in_torchani(potential: Potential) -> Potential:
    """The same potential with the constants that TorchANI keeps in float32."""

    def single(values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float64).float().double()

    core: Any = potential.core
    e = core.environment
    for name in ("radial_width", "angular_width", "zeta"):
        setattr(e, name, float(single(getattr(e, name))))
    for name, first, step in (
        ("radial_index", e.first, e.radial_step),
        ("angular_index", e.first, e.angular_step),
        ("angle_index", 0.5 * e.angle_step, e.angle_step),
    ):
        whole = getattr(e, name)
        setattr(e, name, (single(first + step * whole.double()) - first) / step)
    (term,) = potential.terms
    energies = {
        z: float(single(float(term.picoelectronvolts[z]) * term.unit / HARTREE)) * HARTREE
        for z in potential.elements
    }
    return Potential(core, (AtomicEnergies(energies),), potential.scale)


@pytest.mark.skipif(not PUBLISHED, reason="NNPCALC_ANI_DIRECTORY does not name the directory")
@pytest.mark.parametrize(("atoms", "energy", "forces"), REFERENCE, ids=["water", "methane"])
def test_published_member(atoms: Atoms, energy: float, forces: list[Any]) -> None:
    batch, wanted = batch_of(atoms), torch.tensor(forces, dtype=torch.float64)
    exact = load(PUBLISHED, dtype=torch.float64)
    assert exact.elements == (1, 6, 7, 8, 16, 9, 17)
    results = exact.evaluate(batch)
    assert results.forces is not None
    assert float(results.energy) / HARTREE == pytest.approx(energy, abs=5e-6)
    torch.testing.assert_close(results.forces[: len(forces)] / HARTREE, wanted, rtol=0, atol=2e-7)
    results = rounded_as_in_torchani(exact).evaluate(batch)
    assert results.forces is not None
    assert float(results.energy) / HARTREE == pytest.approx(energy, abs=1e-9)
    torch.testing.assert_close(results.forces[: len(forces)] / HARTREE, wanted, rtol=0, atol=1e-9)
