"""Envoy on the laptop: its binary, its bootstrap, and its admin interface.

The supervisor starts ``python -m tidegate.mesh.envoy``, which writes the bootstrap and becomes
Envoy. The rest of Envoy's configuration comes from the controller.
"""

from tidegate.mesh.envoy.admin import Admin, AdminError, HostStatus
from tidegate.mesh.envoy.errors import EnvoyError
from tidegate.mesh.envoy.packages import check_packages

__all__ = ["Admin", "AdminError", "EnvoyError", "HostStatus", "check_packages"]
