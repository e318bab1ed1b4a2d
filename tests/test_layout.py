"""Rules of the packaging that break silently."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PORTIONS = [ROOT / each / "tidegate" for each in ("clients/python", "services", "router", "mesh")]


@pytest.mark.parametrize("portion", PORTIONS, ids=lambda path: path.parent.name)
def test_the_namespace_has_no_init(portion):
    assert portion.is_dir()
    assert not (portion / "__init__.py").exists()


def test_every_package_is_typed():
    packages = [path.parent for portion in PORTIONS for path in portion.rglob("*.py")]
    for package in sorted(set(packages)):
        parents = [package, *package.parents]
        inside = parents[: parents.index(next(p for p in parents if p in PORTIONS))]
        assert any((folder / "py.typed").exists() for folder in inside), package


def test_no_folder_of_tests_is_left_out(pytestconfig):
    left_out = pytestconfig.getini("norecursedirs")
    tests = (path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    folders = {folder for path in tests for folder in path.parts[:-1]}
    assert "build" in folders
    assert not [each for each in folders if any(fnmatch(each, pattern) for pattern in left_out)]


def test_streams_are_written_through_the_writer_that_lets_them_end():
    # A call that is cancelled in `context.write` may never end for its client; see ResponseWriter.
    files = [path for portion in PORTIONS for path in portion.rglob("*.py")]
    past_it = {path.name for path in files if "await context.write(" in path.read_text()}
    assert past_it == set()
