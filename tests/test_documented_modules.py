"""The architecture page, the README and CONTRIBUTING name only files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/architecture.md", "CONTRIBUTING.md", "README.md")
FOLDERS = "benchmarks|clients|mesh|protos|router|services|tests|tools"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    paths = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text))
    links = set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert paths | links
    assert missing == []
