"""``--fail-skipped`` turns every kind of skip into a failure."""

import pytest

pytest_plugins = ["pytester"]

SKIPPING = """
    import pytest

    {line}

    {mark}
    def test_it():
        {body}
"""
WAYS = {
    "in the test": {"line": "", "mark": "", "body": "pytest.skip('no tool')"},
    "by a mark": {
        "line": "",
        "mark": "@pytest.mark.skipif(True, reason='no tool')",
        "body": "pass",
    },
    "with its module": {
        "line": "pytest.skip('no tool', allow_module_level=True)",
        "mark": "",
        "body": "pass",
    },
}


@pytest.fixture
def run(pytester, pytestconfig):
    pytester.makeini("[pytest]\nmarkers = gpu")
    pytester.makeconftest((pytestconfig.rootpath / "tests/conftest.py").read_text())

    def run(way: dict[str, str], *options: str) -> dict[str, int]:
        pytester.makepyfile(SKIPPING.format(**way))
        options = (*options, "-p", "no:asyncio", "-p", "no:warnings")
        return pytester.runpytest(*options).parseoutcomes()

    return run


@pytest.mark.parametrize("way", WAYS)
def test_a_skipped_test_fails_with_fail_skipped(run, way):
    outcomes = run(WAYS[way], "--fail-skipped")
    assert "skipped" not in outcomes
    assert outcomes.get("failed") == 1 or outcomes.get("errors") == 1


@pytest.mark.parametrize("way", WAYS)
def test_it_is_skipped_without_fail_skipped(run, way):
    assert run(WAYS[way]) == {"skipped": 1}


def test_a_gpu_test_is_skipped_even_with_fail_skipped(run):
    way = WAYS["in the test"] | {"mark": "@pytest.mark.gpu"}
    assert run(way, "--fail-skipped") == {"skipped": 1}
