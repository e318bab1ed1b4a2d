import json
from pathlib import Path

import pytest

from tidegate.serving.repository.digests import digest_of


def onnx_like(payload: bytes = b"weights" * 1000) -> bytes:
    """The outermost protobuf fields of an ONNX file: an IR version, a graph, an opset."""
    length = bytes([len(payload) & 0x7F | 0x80, len(payload) >> 7])
    return b"\x08\x0a" + b"\x3a" + length + payload + b"\x42\x02\x10\x12"


class Hand:
    """Writes entries by hand, into a repository of the test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def classifier(
        self, name="net", version="1", /, *, labels=("cat", "dog"), digests=False, **fields
    ):
        folder = self.root / name / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(onnx_like())
        document = {"kind": "image-classifier"}
        if labels is not None:
            (folder / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
            document["labels"] = "labels.txt"
        if digests:
            document["files"] = {
                path.name: digest_of(path).model_dump() for path in sorted(folder.iterdir())
            }
        (folder / "model.json").write_text(json.dumps(document | fields), encoding="utf-8")
        return folder


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path / "models")
