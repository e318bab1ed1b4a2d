"""Generates the Grafana dashboards in `mesh/istio/components/dashboards` from `tools/dashboards`.

With ``--check`` it changes nothing and reports what is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "mesh" / "istio" / "components" / "dashboards"


def texts() -> dict[Path, str]:
    """Returns the text of each dashboard's file."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    from dashboards import DASHBOARDS

    encoder = JSONEncoder(sort_keys=True, indent=1, ensure_ascii=False)
    return {
        FOLDER / f"{name}.json": encoder.encode(build().build()) + "\n"
        for name, build in DASHBOARDS.items()
    }


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    check = parser.parse_args().check
    try:
        fresh = texts()
    except ModuleNotFoundError as error:
        print(
            f"{Path(__file__).name} needs {error.name}, which requirements/dev.txt names:"
            f" {sys.executable} -m pip install --no-deps -r requirements/dev.txt",
            file=sys.stderr,
        )
        return 1
    stale = [path for path, text in fresh.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in FOLDER.glob("*.json") if path not in fresh]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        print(f"stale: {names}; run `make dashboards`", file=sys.stderr)
        return 1
    for path in stale:
        if path in fresh:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fresh[path])
        else:
            path.unlink()
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
