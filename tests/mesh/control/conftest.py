"""The fixtures of a mesh of processes; see `running_mesh`."""

from running_mesh import mesh, running, serving, shared

__all__ = ["mesh", "running", "serving", "shared"]
