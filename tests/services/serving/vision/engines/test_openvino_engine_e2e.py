"""The OpenVINO engine alone, on the real model."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from tidegate.serving.repository import Repository
from tidegate.serving.vision.batching.classification import find_top_classes
from tidegate.serving.vision.engines.engine import InputForm
from tidegate.serving.vision.engines.openvino_engine import OpenVinoEngine
from tidegate.serving.vision.errors import EngineError

pytestmark = pytest.mark.e2e

NETWORK = "efficientnet-lite0"


@pytest.fixture(scope="module")
def engine(models_root):
    entry = Repository(models_root).find(NETWORK, "1-fp32", verify=False)
    engine = OpenVinoEngine(entry, cores=2, batch_sizes=[1, 4])
    yield engine
    engine.close()


def images(count):
    """Different read-only images, as those of a request are."""
    random = np.random.default_rng(3)
    made = random.integers(0, 256, size=(count, 224, 224, 3), dtype=np.uint8)
    return [np.frombuffer(each.tobytes(), dtype=np.uint8).reshape(224, 224, 3) for each in made]


def normalised(image):
    return (
        ((image.astype(np.float32) - np.float32(127)) / np.float32(128)).transpose(2, 0, 1).copy()
    )


def test_padding_other_images_and_form_do_not_change_a_result(engine):
    three = images(3)
    together = engine.run(InputForm.PIXELS, three).rows
    assert together.shape == (3, 1000)
    for image, row in zip(three, together, strict=True):
        for alone in (False, True):
            (found,) = engine.run(InputForm.PIXELS, [image], alone=alone).rows
            assert found == pytest.approx(row, abs=2e-3)
    tensors = engine.run(InputForm.TENSOR, [normalised(image) for image in three]).rows
    assert tensors == pytest.approx(together, abs=2e-3)


def softmax(rows):
    powers = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_probabilities_are_the_softmax_of_logits_whatever_the_network_computes_in(
    models_root, precision
):
    entry = Repository(models_root).find(NETWORK, f"1-{precision}", verify=False)
    engine = OpenVinoEngine(entry, cores=2, batch_sizes=[4])
    three = images(3)
    outputs = [
        engine.run(InputForm.PIXELS, three),
        engine.run(InputForm.PIXELS, three[:1], alone=True),
        engine.run(InputForm.TENSOR, [normalised(image) for image in three]),
    ]
    engine.close()
    for output in outputs:
        assert output.probabilities == pytest.approx(softmax(output.rows), rel=1e-5, abs=1e-9)


def test_parallel_runs_do_not_disturb_each_other(engine):
    ten = images(10)
    alone = [engine.run(InputForm.PIXELS, [image]) for image in ten]
    kept = [tuple(array.copy() for array in output) for output in alone]
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
        assert run.result().rows == pytest.approx(alone[index // 2].rows, abs=2e-3)
    # The caller owns the output: the next run does not overwrite it.
    for output, copies in zip(alone, kept, strict=True):
        assert all((array == copy).all() for array, copy in zip(output, copies, strict=True))


def test_a_precision_without_cpu_support_is_refused(models_root, write_model):
    folder = write_model("half", "1", precision={"compute": "fp16"})
    entry = Repository(folder.parents[1]).find("half", "1")
    with pytest.raises(EngineError, match="fp16 does not run on the CPU; build the model"):
        OpenVinoEngine(entry, cores=1, batch_sizes=[1])
    entry = Repository(write_model("shell", "1").parents[1]).find("shell", "1")
    with pytest.raises(EngineError, match="cannot be loaded"):
        OpenVinoEngine(entry, cores=1, batch_sizes=[1])


def two_outputs(path):
    """A network of two by two pixels with two outputs: features, and three scores as doubles."""
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


def test_the_named_output_is_read_whatever_its_type(write_model):
    folder = write_model("two", "1", output={"tensor": "scores"})
    two_outputs(folder / "model.onnx")
    entry = Repository(folder.parents[1]).find("two", "1", verify=False)
    engine = OpenVinoEngine(entry, cores=1, batch_sizes=[1, 2])
    tensor = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    output = engine.run(InputForm.TENSOR, [tensor])
    assert [each.dtype for each in output] == [np.float32, np.float32]
    assert output.rows.tolist() == [[0, 1, 2]]
    assert output.probabilities == pytest.approx(softmax(output.rows))
    dark = np.zeros((2, 2, 3), dtype=np.uint8)
    for alone in (False, True):
        assert engine.run(InputForm.PIXELS, [dark], alone=alone).rows.shape == (1, 3)


@pytest.fixture
def logits_of_tensor(write_model):
    """A network whose logits are the twelve numbers of its input."""
    folder = write_model("flat", "1")
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Flatten", ["image"], ["logits"])],
        "flat",
        [value("image", kind.FLOAT, ["n", 3, 2, 2])],
        [value("logits", kind.FLOAT, ["n", 12])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, folder / "model.onnx")
    entry = Repository(folder.parents[1]).find("flat", "1", verify=False)
    engine = OpenVinoEngine(entry, cores=1, batch_sizes=[1])
    yield lambda numbers: engine.run(
        InputForm.TENSOR, [np.array(numbers, dtype=np.float32).reshape(3, 2, 2)]
    )
    engine.close()


def test_logits_become_softmax_however_large_they_are(logits_of_tensor):
    random = np.random.default_rng(5)
    for _ in range(100):
        output = logits_of_tensor(random.uniform(-80, 80, 12))
        exact = np.exp(output.rows.astype(np.float64))
        assert output.probabilities == pytest.approx(exact / exact.sum(), rel=1e-4, abs=1e-7)
        assert output.probabilities.sum() == pytest.approx(1, abs=1e-4)
    huge = logits_of_tensor([1e4, -1e4, 1e4] + [-1e4] * 9)
    assert huge.probabilities.tolist() == [[0.5, 0.0, 0.5] + [0.0] * 9]
    assert find_top_classes(huge, [3]) == [([0, 2, 1], [0.5, 0.5, 0.0])]


def test_classes_without_a_score_have_no_probability(logits_of_tensor):
    (found,) = find_top_classes(logits_of_tensor([-np.inf, 3.0] + [-np.inf] * 10), [3])
    assert found.classes[0] == 1
    assert found.scores == [1.0, 0.0, 0.0]


def test_an_output_of_probabilities_is_returned_unchanged(write_model):
    folder = write_model("two", "1", output={"tensor": "scores", "kind": "probabilities"})
    two_outputs(folder / "model.onnx")
    entry = Repository(folder.parents[1]).find("two", "1", verify=False)
    engine = OpenVinoEngine(entry, cores=1, batch_sizes=[1])
    tensor = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    output = engine.run(InputForm.TENSOR, [tensor])
    assert output.probabilities.tolist() == output.rows.tolist() == [[0, 1, 2]]


def test_openvino_does_not_call_home(tmp_path):
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('telemetry was imported')")
    code = "import tidegate.serving.vision.engines.openvino_engine"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True
    )
