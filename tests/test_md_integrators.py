"""Integrators against mathematics: analytic oscillators, orders of convergence, conservation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators import lj as ase_lj
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet

from md_fields import Harmonic, LennardJones, Quartic, cluster, oscillators, start, steps
from nnpcalc import AtomsBatch, md
from nnpcalc.units import FORCE_TO_ACCELERATION, FS, KB

KELVIN = 300.0


def moving(atoms: Atoms, velocity: float = 0.004) -> Atoms:
    """With momenta that differ from atom to atom; Å/fs."""
    v = velocity * np.sin(1.0 + np.arange(3 * len(atoms)).reshape(-1, 3))
    atoms.set_velocities((v - v.mean(0) if len(atoms) > 1 else v) / FS)
    return atoms


# --- constant energy ---------------------------------------------------------------------------


def test_nve_is_the_discrete_oscillator() -> None:
    """Velocity Verlet of an oscillator is known in closed form: cos(w' h) = 1 - (w h)^2 / 2."""
    k, mass, h, n = 2.0, 12.0, 2.0, 1000
    field, integrator = Harmonic(k), md.NVE(h)
    state = start(oscillators(1), field, integrator, temperature=0.0)
    x0 = state.positions.clone()
    omega = math.sqrt(k * FORCE_TO_ACCELERATION / mass)
    frequency = math.acos(1.0 - 0.5 * (omega * h) ** 2) / h
    state = steps(state, field, integrator, n)
    assert float((state.positions - x0 * math.cos(frequency * h * n)).abs().max()) < 1e-11
    assert frequency == pytest.approx(omega, rel=(omega * h) ** 2 / 20)


def energy_error(atoms: Atoms, field: Any, h: float, time: float = 2000.0) -> float:
    integrator = md.NVE(h)
    state = start(atoms, field, integrator)
    energies = []
    for _ in range(round(time / h)):
        state = integrator.step(state, field)
        energies.append(float(integrator.conserved(state)))
    return float(np.std(energies))


@pytest.mark.parametrize(
    ("atoms", "field", "h"),
    [
        (moving(oscillators(2)), Harmonic(3.0), 4.0),
        (moving(cluster(4), 0.001), LennardJones(), 16.0),
    ],
    ids=["harmonic", "argon"],
)
def test_halving_the_step_quarters_the_energy_error(atoms: Atoms, field: Any, h: float) -> None:
    ratio = energy_error(atoms, field, h) / energy_error(atoms, field, h / 2)
    assert ratio == pytest.approx(4.0, abs=0.4)


def test_nve_is_reversible_and_keeps_the_momentum() -> None:
    field, integrator = LennardJones(), md.NVE(5.0)
    first = start(cluster(), field, integrator, temperature=40.0)
    last = steps(first, field, integrator, 300)
    assert float(last.momenta.sum(0).abs().max()) < 1e-13
    assert float((last.positions - first.positions).abs().max()) > 0.1
    back = steps(last.moved(last.positions, -last.momenta), field, integrator, 300)
    assert float((back.positions - first.positions).abs().max()) < 1e-9


class AseField:
    """ASE's Lennard-Jones potential, which somebody else wrote."""

    def __init__(self) -> None:
        self.calc = ase_lj.LennardJones(sigma=3.4, epsilon=0.0104, rc=20.0)

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        image = Atoms(atoms.numbers.numpy(), atoms.positions.numpy(), calculator=self.calc)
        energy = torch.tensor([image.get_potential_energy()], dtype=torch.float64)
        return md.Forces(energy, torch.from_numpy(image.get_forces()))


@pytest.mark.parametrize("fixed", [[], [0, 3]])
def test_nve_is_that_of_ase(fixed: list[int]) -> None:
    atoms = moving(cluster(6), 0.002)
    atoms.set_constraint(FixAtoms(fixed))
    atoms.set_momenta(atoms.get_momenta())
    field, integrator = AseField(), md.NVE(5.0)
    state = steps(start(atoms, field, integrator), field, integrator, 200)
    atoms.calc = ase_lj.LennardJones(sigma=3.4, epsilon=0.0104, rc=20.0)
    VelocityVerlet(atoms, timestep=5.0 * FS).run(200)
    assert np.abs(state.positions.numpy() - atoms.positions).max() < 1e-10
    assert np.abs(state.momenta.numpy() / FS - atoms.get_momenta()).max() < 1e-10


def test_period_of_a_lennard_jones_pair() -> None:
    """Half a period is the integral of dr / v(r) between the turning points."""
    integrate = pytest.importorskip("scipy.integrate")
    optimize = pytest.importorskip("scipy.optimize")
    field, mass, h = LennardJones(), 39.95, 2.0
    eps, sigma, cutoff = field.epsilon, field.sigma, field.cutoff

    def v(r: float) -> float:
        s6 = (sigma / r) ** 6
        return 4 * eps * (s6 * s6 - s6) * (1 - (r / cutoff) ** 2) ** 3

    inner = 3.6
    outer = optimize.brentq(lambda r: v(r) - v(inner), 3.8, 7.9, xtol=1e-12)
    middle, half = 0.5 * (inner + outer), 0.5 * (outer - inner)

    def slowness(angle: float) -> float:  # r = middle - half cos(angle) takes the poles away
        r = middle - half * math.cos(angle)
        speed2 = 4.0 * (v(inner) - v(r)) / mass * FORCE_TO_ACCELERATION
        return half * math.sin(angle) / math.sqrt(speed2)

    period = 2.0 * integrate.quad(slowness, 1e-6, math.pi - 1e-6)[0]
    integrator = md.NVE(h)
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, inner]], masses=[mass] * 2)
    state = start(atoms, field, integrator, temperature=0.0)
    times, before = [], 0.0
    for n in range(1, round(3.2 * period / h)):
        state = integrator.step(state, field)
        now = float(state.momenta[1, 2])
        if before < 0 <= now:  # back at the inner turning point
            times.append((n - now / (now - before)) * h)
        before = now
    assert len(times) == 3
    assert times[-1] / 3 == pytest.approx(period, rel=2e-4)


# --- orders of convergence -----------------------------------------------------------------------


def end_of(integrator: Any, field: Any, atoms: Atoms, time: float, **options: Any) -> torch.Tensor:
    state = start(atoms, field, integrator, **options)
    state = steps(state, field, integrator, round(time / integrator.timestep))
    return torch.cat((state.positions, state.momenta))


def order(make: Any, field: Any, atoms: Atoms, h: float, time: float) -> float:
    """log2 of the ratio of the changes between h, h/2 and h/4 (Richardson)."""
    a, b, c = (end_of(make(h / 2**k), field, atoms, time) for k in range(3))
    return math.log2(float((a - b).norm() / (b - c).norm()))


@pytest.mark.parametrize(
    "make",
    [
        md.NVE,
        lambda h: md.NoseHoover(h, KELVIN, relaxation=50.0),
        lambda h: md.NoseHoover(h, KELVIN, relaxation=50.0, chain=1),
        lambda h: md.Respa(md.NVE(h / 4), Harmonic(3.0), 4),
        # without noise, the limit of a cold bath, Langevin dynamics is a damped oscillator
        lambda h: md.Langevin(h, 0.0, friction=0.01),
    ],
    ids=["NVE", "NoseHoover", "NoseHoover-1", "Respa", "Langevin"],
)
def test_second_order(make: Any) -> None:
    assert order(make, Quartic(20.0), moving(oscillators(2)), 4.0, 160.0) == pytest.approx(
        2, abs=0.1
    )


def linear_map(integrator: md.Langevin, field: Harmonic) -> tuple[np.ndarray, np.ndarray]:
    """A and the covariance of b of (x, p) <- A (x, p) + b of one step, measured."""
    mass = 12.0

    def image(x: float, p: float, step: int = 0) -> np.ndarray:
        state = start(oscillators(1), field, integrator, temperature=0.0)
        state = state.moved(torch.full((1, 3), x).double(), torch.full((1, 3), p).double())
        forces = field(state.atoms).forces
        state = md.MDState(**{**vars(state), "forces": forces, "step": step})
        after = integrator.step(state, field)
        return np.array([after.positions[0, 0].item(), after.momenta[0, 0].item()])

    shift = image(0.0, 0.0)
    matrix = np.stack([image(1.0, 0.0) - shift, image(0.0, mass) - shift], 1) / [1.0, mass]
    random = md.Langevin(1.0, 1.0)._noise.at(1, torch.zeros(1).long(), torch.zeros(1).long(), 0)
    vector = shift / float(random[0, 0])
    return matrix, np.outer(vector, vector)


def test_langevin_samples_the_oscillator_exactly() -> None:
    """BAOAB: <x^2> = k_B T / k without any error, <p^2> = m k_B T (1 - (w h)^2 / 4)."""
    k, mass, h = 2.0, 12.0, 8.0
    matrix, noise = linear_map(md.Langevin(h, KELVIN, friction=0.01), Harmonic(k))
    # the stationary covariance C = A C A^T + B
    eye = np.eye(4)
    stationary = np.linalg.solve(eye - np.kron(matrix, matrix), noise.reshape(4)).reshape(2, 2)
    assert stationary[0, 0] == pytest.approx(KB * KELVIN / k, rel=1e-9)
    wh = h * math.sqrt(k * FORCE_TO_ACCELERATION / mass)
    expected = mass * KB * KELVIN * FORCE_TO_ACCELERATION * (1 - wh**2 / 4)
    assert stationary[1, 1] == pytest.approx(expected, rel=1e-9)
    assert abs(stationary[0, 1]) < 1e-12


def test_langevin_forgets_with_its_friction() -> None:
    """Without forces a momentum decays as exp(-g t), whatever the step."""
    friction = 0.005
    for h in (1.0, 10.0):
        integrator, field = md.Langevin(h, 0.0, friction), Harmonic(1e-12)
        state = start(moving(oscillators(1)), field, integrator)
        p0 = state.momenta.clone()
        state = steps(state, field, integrator, round(400 / h))
        assert torch.allclose(state.momenta, p0 * math.exp(-friction * 400), rtol=1e-8)


# --- conserved quantities ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda h: md.Langevin(h, 40.0, friction=0.002),
        lambda h: md.Bussi(h, 40.0, relaxation=200.0),
        lambda h: md.NoseHoover(h, 40.0, relaxation=200.0),
        lambda h: md.Respa(md.NVE(h / 2), LennardJones(epsilon=0.009), 2),
        lambda h: md.Respa(md.Langevin(h / 2, 40.0), LennardJones(epsilon=0.009), 2),
    ],
    ids=["Langevin", "Bussi", "NoseHoover", "Respa", "Respa-Langevin"],
)
def test_conserved_quantity(make: Any) -> None:
    """It changes by far less than the potential energy does, and less with a shorter step."""
    field, spread = LennardJones(), []
    for h in (12.0, 4.0):
        integrator = make(h)
        state = start([cluster(), cluster(5)], field, integrator, temperature=40.0)
        kept, energies = [], []
        for _ in range(round(1200 / h)):
            state = integrator.step(state, field)
            kept.append(integrator.conserved(state))
            energies.append(state.energy)
        moved = torch.stack(energies).std(0)
        spread.append(float((torch.stack(kept).std(0) / moved).max()))
    assert spread[1] < 0.005
    assert spread[1] < 0.5 * spread[0]


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: md.NVE(0.0), "timestep must be positive"),
        (lambda: md.NVE(math.nan), "timestep must be positive"),
        (lambda: md.Langevin(1.0, 300.0, -1.0), "friction must be positive"),
        (lambda: md.NoseHoover(1.0, 300.0, chain=0), "chain needs 1"),
        (lambda: md.CellRescaling(1.0, 300.0, math.inf), "pressure must be finite"),
        (lambda: md.CellRescaling(1.0, 300.0, 0.0, interval=0), "interval must be 1"),
        (lambda: md.Respa(md.Bussi(1.0, 300.0), Harmonic(), 2), "NVE or Langevin"),  # type: ignore[arg-type]
        (lambda: md.Respa(md.NVE(1.0), Harmonic(), 0), "inner_steps must be 1"),
    ],
)
def test_bad_settings(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("make", [md.Bussi, md.NoseHoover])
def test_what_a_global_thermostat_refuses(make: Any) -> None:
    field = Harmonic()
    with pytest.raises(ValueError, match=r"replica 0 has 1 atom .* use Langevin"):
        start(oscillators(1), field, make(1.0, 300.0))
    with pytest.raises(ValueError, match=r"replica 1 is at rest.*with_thermal_momenta"):
        start([moving(oscillators(2)), oscillators(2)], field, make(1.0, 300.0))
    with pytest.raises(ValueError, match="above 0 K"):
        start(moving(oscillators(2)), field, make(1.0, 0.0))
    with pytest.raises(ValueError, match="2 temperatures for 1 replicas"):
        start(moving(oscillators(2)), field, make(1.0, (300.0, 400.0)))
    drifting = oscillators(2)
    drifting.set_velocities([[0.01, 0, 0]] * 2)
    with pytest.raises(ValueError, match=r"replica 0 drifts as a whole.*without_drift"):
        start(drifting, field, make(1.0, 300.0))


def test_temperatures_of_their_own() -> None:
    """Replicas with different temperatures in one batch: the same bits as one by one."""
    field, atoms = Harmonic(2.0), oscillators(3)
    together = md.Langevin(2.0, (100.0, 500.0))
    state = steps(start([atoms, atoms], field, together), field, together, 20)
    for k, kelvin in enumerate((100.0, 500.0)):
        single = md.Langevin(2.0, kelvin)
        alone = steps(start(atoms, field, single, replicas=[k]), field, single, 20)
        assert torch.equal(alone.positions, state.select([k]).positions)
