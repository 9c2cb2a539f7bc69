"""3D molecules by E(3)-equivariant diffusion of atoms, charges, bonds and coordinates."""

__version__ = "0.1.0"
