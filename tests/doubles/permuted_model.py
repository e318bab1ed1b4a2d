"""A copy of the classifier whose classes are permuted: it is as fast as the original, and wrong."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from laptop_mesh import CLASSIFIER, MODELS

__all__ = ["permuted_classifier"]


def permuted_classifier(repository: Path, version: str = "1-permuted") -> str:
    """Writes the model into a repository; returns its name and version, as `load` takes them."""
    source, target = MODELS / CLASSIFIER / "1-fp32", repository / CLASSIFIER / version
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx")
    output = model.graph.output[0]
    classes = output.type.tensor_type.shape.dim[-1].dim_value
    order = np.roll(np.arange(classes), 1).astype(np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(order, "class_order"))
    for node in model.graph.node:
        node.output[:] = ["in_order" if name == output.name else name for name in node.output]
    model.graph.node.append(
        onnx.helper.make_node("Gather", ["in_order", "class_order"], [output.name], axis=-1)
    )
    onnx.checker.check_model(model)
    (target / "model.onnx").write_bytes(model.SerializeToString())
    entry = json.loads((target / "model.json").read_text())
    content = (target / "model.onnx").read_bytes()
    entry["version"] = version
    entry["files"]["model.onnx"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    (target / "model.json").write_text(json.dumps(entry))
    return f"{CLASSIFIER}/{version}"
