"""The OpenVINO engine by itself, on the real model."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from tidegate.serving.repository import Repository
from tidegate.serving.vision.engine import InputForm
from tidegate.serving.vision.errors import EngineError
from tidegate.serving.vision.openvino_engine import OpenVinoEngine

pytestmark = pytest.mark.e2e

NETWORK = "efficientnet-lite0"


@pytest.fixture(scope="module")
def engine(models_root):
    entry = Repository(models_root).find(NETWORK, "1-fp32", verify=False)
    engine = OpenVinoEngine(entry, cores=2, batch_sizes=[1, 4])
    yield engine
    engine.close()


def images(count):
    """Different images that may only be read, as those of a request are."""
    random = np.random.default_rng(3)
    made = random.integers(0, 256, size=(count, 224, 224, 3), dtype=np.uint8)
    return [np.frombuffer(each.tobytes(), dtype=np.uint8).reshape(224, 224, 3) for each in made]


def normalised(image):
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    return ((image / np.float32(255) - mean) / std).transpose(2, 0, 1).copy()


def test_padding_company_and_form_do_not_change_a_result(engine):
    three = images(3)
    together = engine.run(InputForm.PIXELS, three)
    assert together.shape == (3, 1000)
    for image, row in zip(three, together, strict=True):
        assert engine.run(InputForm.PIXELS, [image])[0] == pytest.approx(row, abs=2e-3)
        assert engine.run(InputForm.PIXELS, [image], alone=True)[0] == pytest.approx(row, abs=2e-3)
    tensors = engine.run(InputForm.TENSOR, [normalised(image) for image in three])
    assert tensors == pytest.approx(together, abs=2e-3)


def test_runs_at_once_do_not_disturb_each_other(engine):
    ten = images(10)
    alone = [engine.run(InputForm.PIXELS, [image])[0] for image in ten]
    kept = [row.copy() for row in alone]
    with ThreadPoolExecutor(engine.traits.slots) as threads:
        forms = [InputForm.PIXELS, InputForm.TENSOR]
        runs = [
            threads.submit(
                engine.run, form, [image if form is InputForm.PIXELS else normalised(image)]
            )
            for image in ten
            for form in forms
        ]
    for index, run in enumerate(runs):
        assert run.result()[0] == pytest.approx(alone[index // 2], abs=2e-3)
    # What was given is the caller's own, and not memory that the next run writes to.
    assert all((row == copy).all() for row, copy in zip(alone, kept, strict=True))


def test_a_precision_that_the_cpu_does_not_have_is_refused(models_root, write_model):
    folder = write_model("half", "1", precision={"compute": "fp16"})
    entry = Repository(folder.parents[1]).find("half", "1")
    with pytest.raises(EngineError, match="fp16 does not run on the CPU; build the model"):
        OpenVinoEngine(entry, cores=1, batch_sizes=[1])
    entry = Repository(write_model("shell", "1").parents[1]).find("shell", "1")
    with pytest.raises(EngineError, match="cannot be loaded"):
        OpenVinoEngine(entry, cores=1, batch_sizes=[1])


def two_outputs(path):
    """A network of two by two pixels: its features, and scores for three classes in double."""
    make = onnx.helper.make_node
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [
            make("Flatten", ["image"], ["features"]),
            make("MatMul", ["features", "weights"], ["logits"]),
            make("Cast", ["logits"], ["scores"], to=kind.DOUBLE),
        ],
        "two",
        [value("image", kind.FLOAT, ["n", 3, 2, 2])],
        [value("features", kind.FLOAT, ["n", 12]), value("scores", kind.DOUBLE, ["n", 3])],
        [onnx.numpy_helper.from_array(np.eye(12, 3, dtype=np.float32), "weights")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def test_of_several_outputs_the_one_that_was_named_is_read_whatever_its_type(write_model):
    folder = write_model("two", "1", output={"tensor": "scores"})
    two_outputs(folder / "model.onnx")
    entry = Repository(folder.parents[1]).find("two", "1", verify=False)
    engine = OpenVinoEngine(entry, cores=1, batch_sizes=[1, 2])
    tensor = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    scores = engine.run(InputForm.TENSOR, [tensor])
    assert scores.dtype == np.float32
    assert scores.tolist() == [[0, 1, 2]]
    dark = np.zeros((2, 2, 3), dtype=np.uint8)
    for alone in (False, True):
        assert engine.run(InputForm.PIXELS, [dark], alone=alone).shape == (1, 3)


def test_openvino_does_not_call_home(tmp_path):
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('telemetry was imported')")
    code = "import tidegate.serving.vision.openvino_engine"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True
    )
