"""Physical constants and unit conversions, the only place where they are written down.

Internal units are eV, Å, atomic mass units (amu), elementary charges and femtoseconds. Multiply by
a constant to come from its unit into the internal ones, divide to go back, as with `ase.units`::

    energy_eV = energy_hartree * HARTREE
    energy_kcal_per_mol = energy_eV / KCAL_PER_MOL

The values are CODATA 2014 (Mohr, Newell and Taylor, Rev. Mod. Phys. 88, 035009 (2016)), because
that is what `ase.units` uses: numbers that pass through ASE and through this package then agree to
machine precision. A test compares the two.

ASE's own unit of time is not the femtosecond but Å sqrt(amu/eV), about 10.18 fs; this choice makes
kinetic energies come out in eV without a factor. `FS` converts: `t_ase = t_fs * FS`.
"""

from __future__ import annotations

from math import pi, sqrt

# CODATA 2014, SI units. Everything below follows from these.
SPEED_OF_LIGHT_SI = 299_792_458.0  # m/s, exact
VACUUM_PERMEABILITY_SI = 4.0e-7 * pi  # N/A^2, exact in this edition
PLANCK_SI = 6.626_070_040e-34  # J s
ELEMENTARY_CHARGE_SI = 1.602_176_6208e-19  # C
ELECTRON_MASS_SI = 9.109_383_56e-31  # kg
AVOGADRO = 6.022_140_857e23  # 1/mol
BOLTZMANN_SI = 1.380_648_52e-23  # J/K
ATOMIC_MASS_SI = 1.660_539_040e-27  # kg

VACUUM_PERMITTIVITY_SI = 1.0 / VACUUM_PERMEABILITY_SI / SPEED_OF_LIGHT_SI**2  # F/m
HBAR_SI = PLANCK_SI / (2.0 * pi)  # J s

# Lengths in Å.
BOHR = (
    4.0e10 * pi * VACUUM_PERMITTIVITY_SI * HBAR_SI**2 / ELECTRON_MASS_SI / ELEMENTARY_CHARGE_SI**2
)  # 0.529177 Å
NM = 10.0

# Energies in eV. The `_PER_MOL` units are per particle: 1 kcal/mol is 0.0434 eV.
HARTREE = (
    ELECTRON_MASS_SI
    * ELEMENTARY_CHARGE_SI**3
    / 16.0
    / pi**2
    / VACUUM_PERMITTIVITY_SI**2
    / HBAR_SI**2
)  # 27.2114 eV
KJ_PER_MOL = 1000.0 / ELEMENTARY_CHARGE_SI / AVOGADRO
KCAL_PER_MOL = 4.184 * KJ_PER_MOL
INVCM = 100.0 * SPEED_OF_LIGHT_SI * PLANCK_SI / ELEMENTARY_CHARGE_SI  # energy of 1 cm^-1

#: Boltzmann constant, eV/K.
KB = BOLTZMANN_SI / ELEMENTARY_CHARGE_SI

#: e^2 / (4 pi eps0) in eV Å: the energy of two elementary charges is COULOMB / r. 14.3996 eV Å.
COULOMB = 1.0e10 * ELEMENTARY_CHARGE_SI / (4.0 * pi * VACUUM_PERMITTIVITY_SI)

#: Electric dipole of 1 debye, in e Å.
DEBYE = 1.0 / 1.0e11 / ELEMENTARY_CHARGE_SI / SPEED_OF_LIGHT_SI

# Pressures in eV/Å^3.
PASCAL = 1.0 / ELEMENTARY_CHARGE_SI / 1.0e30
BAR = 1.0e5 * PASCAL
GPA = 1.0e9 * PASCAL

# Time. ASE's unit of time is Å sqrt(amu/eV).
#: One femtosecond in ASE's unit of time, 0.0982; divide by it to turn an ASE time into fs.
FS = 1.0e-15 * 1.0e10 * sqrt(ELEMENTARY_CHARGE_SI / ATOMIC_MASS_SI)

#: Acceleration in Å/fs^2 of a mass of 1 amu under a force of 1 eV/Å: a = FORCE_TO_ACCELERATION * F
#: / m.
FORCE_TO_ACCELERATION = FS**2

#: Kinetic energy in eV of a mass of 1 amu at 1 Å/fs: E = VELOCITY_SQUARED_TO_ENERGY * m v^2 / 2.
VELOCITY_SQUARED_TO_ENERGY = 1.0 / FS**2
