"""OpenTelemetry's semantic conventions, from the pinned package."""

import importlib
import inspect
import pkgutil
import re

import opentelemetry.semconv._incubating.attributes as development
import opentelemetry.semconv.attributes as stable
from opentelemetry.semconv.schemas import Schemas

_CONSTANT = re.compile(r'^[A-Z0-9_]+: Final = "([^"]+)"\n"""\n(Deprecated)?', re.MULTILINE)

LATEST_SCHEMA = list(Schemas)[-1].value


def current_attributes():
    """Gives the names of all attributes that are not deprecated."""
    names = set()
    for package in (development, stable):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            source = inspect.getsource(importlib.import_module(module.name))
            names |= {name for name, deprecated in _CONSTANT.findall(source) if not deprecated}
    return names
