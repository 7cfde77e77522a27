"""The constants are ASE's, and the relations between them hold."""

from __future__ import annotations

import re
from pathlib import Path

import ase.units
import numpy as np
import pytest

from nnpcalc import units


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (units.BOHR, ase.units.Bohr),
        (units.HARTREE, ase.units.Hartree),
        (units.NM, ase.units.nm),
        (units.KB, ase.units.kB),
        (units.FS, ase.units.fs),
        (units.KJ_PER_MOL, ase.units.kJ / ase.units.mol),
        (units.KCAL_PER_MOL, ase.units.kcal / ase.units.mol),
        (units.INVCM, ase.units.invcm),
        (units.DEBYE, ase.units.Debye),
        (units.PASCAL, ase.units.Pascal),
        (units.BAR, ase.units.bar),
        (units.GPA, ase.units.GPa),
        (units.COULOMB, ase.units.Hartree * ase.units.Bohr),
        (units.AVOGADRO, ase.units._Nav),
    ],
)
def test_equal_to_ase(ours: float, theirs: float) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)


def test_textbook_values() -> None:
    """Against numbers from elsewhere, so that a shared mistake with ASE would show."""
    assert units.COULOMB == pytest.approx(14.3996, abs=5e-5)
    assert units.HARTREE / units.KCAL_PER_MOL == pytest.approx(627.5095, abs=1e-4)
    assert 1.0 / units.KJ_PER_MOL == pytest.approx(96.4853, abs=5e-5)  # kJ/mol per eV
    assert 1.0 / units.INVCM == pytest.approx(8065.54, abs=5e-3)  # cm^-1 per eV
    assert 298.15 * units.KB / units.KCAL_PER_MOL == pytest.approx(0.5925, abs=5e-5)
    assert 1.0 / units.FS == pytest.approx(10.1805, abs=5e-5)  # fs per ASE time


def test_acceleration_and_kinetic_energy_agree() -> None:
    """A constant force does work F x, and that is the kinetic energy it gives."""
    force, mass, time = 0.7, 15.999, 3.0  # eV/Å, amu, fs
    acceleration = units.FORCE_TO_ACCELERATION * force / mass
    distance, velocity = acceleration * time**2 / 2, acceleration * time
    kinetic = units.VELOCITY_SQUARED_TO_ENERGY * mass * velocity**2 / 2
    assert kinetic == pytest.approx(force * distance, rel=1e-14)


def test_the_only_file_with_constants() -> None:
    """No other module types in a conversion factor: the leading digits of the common ones."""
    digits = re.compile(
        r"\b(27\.211|0\.52917|14\.3996|8\.617\d*e-0?5|0\.09822|10\.1805|627\.50|96\.485)"
    )
    package = Path(units.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "units.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if digits.search(line.split("#")[0])
    ]
    assert found == []
