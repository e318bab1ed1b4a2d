"""Files of Istio's Go module, of the version from which `make servers` builds istiod."""

import os
import re
from pathlib import Path

import pytest

_GO_MOD = Path(__file__).parents[2] / "tools/servers/istio/go.mod"
_VERSION = re.compile(r"istio\.io/istio (v\S+)")


def istio_file(path):
    """The path of a file or folder of the module; skips the test if Go has not downloaded it."""
    version = _VERSION.search(_GO_MOD.read_text())[1]
    cache = os.environ.get("GOMODCACHE") or Path(os.environ.get("GOPATH") or Path.home() / "go") / (
        "pkg/mod"
    )
    found = Path(cache) / f"istio.io/istio@{version}" / path
    if not found.exists():
        pytest.skip(f"no {found}; `go mod download` in tools/servers/istio gets it")
    return found
