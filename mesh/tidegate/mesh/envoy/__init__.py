"""Runs Envoy: finds its binary, tells it where its controller is, and asks it how it is.

``python -m tidegate.mesh.envoy`` is the program that the supervisor starts. It writes the bootstrap
and becomes Envoy. Everything else that Envoy knows comes from the controller.
"""

from tidegate.mesh.envoy.admin import Admin, AdminError, Host
from tidegate.mesh.envoy.errors import EnvoyError
from tidegate.mesh.envoy.packages import check_packages

__all__ = ["Admin", "AdminError", "EnvoyError", "Host", "check_packages"]
