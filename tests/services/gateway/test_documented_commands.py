"""The commands in the documentation of images and of `/v2` work as written."""

import json
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

DOCS = Path(__file__).parents[3] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name in ("gateway-images", "gateway-open-inference")
    for number, block in enumerate(
        re.findall(r"```bash\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
    )
]
# The pattern finds them all.
assert len(BLOCKS) == 5


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    place = tmp_path_factory.mktemp("documented")
    (place / "samples").mkdir()
    for name, (data, _) in photographs.items():
        (place / "samples" / f"{name}.jpg").write_bytes(data)
    return place


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_documented_command_works(vision_front, run, folder, block):
    assert "http://127.0.0.1:8000" in block
    here = block.replace("http://127.0.0.1:8000", vision_front.url)
    output = await run("bash", "-euo", "pipefail", "-c", f"cd '{folder}'\n{here}")
    answer = json.loads(output.splitlines()[-1])
    if "results" in answer:
        assert answer["results"][0]["classifications"][0]["class_id"] == 282
    else:
        assert len(answer["outputs"][0]["data"]) == answer["outputs"][0]["shape"][1]
