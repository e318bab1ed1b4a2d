"""A mesh of processes for the tests of `MeshRouter`; see `running_mesh`."""

from running_mesh import mesh, running, serving, shared

__all__ = ["mesh", "running", "serving", "shared"]
