"""The example of the README runs unchanged but for its addresses."""

import re
from pathlib import Path

from double_server import double_server

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"


def test_example_of_the_readme_works(tmp_path, monkeypatch, capsys):
    (tmp_path / "cat.jpg").write_bytes(b"jpeg")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    with double_server() as server:
        exec(re.sub(r"127\.0\.0\.1:8[56]00", server.address, example), {})
    assert capsys.readouterr().out == "tabby\nParis."
