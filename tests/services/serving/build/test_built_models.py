"""The models that ``make models`` builds recognise the photographs, at every precision."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tidegate.cli.build import app
from tidegate.serving.build.photographs import SAMPLES, calibration_crops, read_photograph
from tidegate.serving.repository import EntryNotFoundError, Repository

pytestmark = pytest.mark.e2e

PRECISIONS = ("fp32", "bf16", "int8")
HELD_OUT_SEED = 77


@pytest.fixture(scope="module")
def models():
    default = Path(__file__).parents[4] / "models"
    return Repository(Path(os.environ.get("TIDEGATE_MODELS", default)))


def built(models, name, version):
    try:
        return models.find(name, version)
    except EntryNotFoundError as error:
        pytest.skip(f"{error}; build it with `make models`, or set TIDEGATE_MODELS")


def normalised(planes, metadata):
    mean, std = (
        np.array(three, dtype=np.float32).reshape(3, 1, 1)
        for three in (metadata.preprocessing.mean, metadata.preprocessing.std)
    )
    return (planes - mean) / std


def prepared(pixels, metadata):
    """The evaluation preprocessing, by Pillow: shortest side, centre crop, normalise."""
    photograph = Image.fromarray(pixels)
    steps = metadata.preprocessing
    scale = steps.resize_shortest_side / min(photograph.size)
    resized = photograph.resize(
        [int(side * scale) for side in photograph.size],
        Image.Resampling[steps.interpolation.upper()],
    )
    left = round((resized.width - metadata.input.width) / 2)
    top = round((resized.height - metadata.input.height) / 2)
    box = (left, top, left + metadata.input.width, top + metadata.input.height)
    planes = np.asarray(resized.crop(box), dtype=np.float32).transpose(2, 0, 1)
    return normalised(planes * steps.scale, metadata)


def logits(entry, images):
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: tidegate[vision]")
    hint = "bf16" if entry.metadata.precision.compute == "bf16" else "f32"
    network = openvino.Core().compile_model(
        entry.model_path, "CPU", {"INFERENCE_PRECISION_HINT": hint}
    )
    batches = (images[start : start + 8] for start in range(0, len(images), 8))
    return np.concatenate(
        [network([batch])[entry.metadata.output.tensor].copy() for batch in batches]
    )


@pytest.fixture(scope="module")
def reference(models):
    """The fp32 network's outputs for views outside the calibration set."""
    entry = built(models, "efficientnet-lite0", "1-fp32")
    metadata = entry.image_classifier()
    views = np.stack(
        [
            normalised(planes, metadata)
            for planes in calibration_crops(96, size=metadata.input.height, seed=HELD_OUT_SEED)
        ]
    )
    return views, logits(entry, views)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_recognises_the_samples(models, precision):
    entry = built(models, "efficientnet-lite0", f"1-{precision}")
    metadata = entry.image_classifier()
    assert metadata.precision.compute == precision
    images = np.stack([prepared(read_photograph(sample.file), metadata) for sample in SAMPLES])
    answers = logits(entry, images)
    assert {s.name: int(a.argmax()) for s, a in zip(SAMPLES, answers, strict=True)} == {
        sample.name: sample.classes[0] for sample in SAMPLES
    }


@pytest.mark.parametrize(
    ("precision", "cosine", "agreement"), [("bf16", 0.998, 0.97), ("int8", 0.97, 0.9)]
)
def test_a_lower_precision_stays_close_to_fp32(models, reference, precision, cosine, agreement):
    views, expected = reference
    found = logits(built(models, "efficientnet-lite0", f"1-{precision}"), views)
    cosines = (found * expected).sum(1) / (
        np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    )
    assert cosines.mean() > cosine
    exponentials = np.exp(expected - expected.max(axis=1, keepdims=True))
    sure = exponentials.max(axis=1) / exponentials.sum(axis=1) > 0.3
    assert sure.sum() >= 30
    assert (found.argmax(1) == expected.argmax(1))[sure].mean() >= agreement


def test_the_default_classifier_is_the_one_the_others_are_measured_against(models):
    built(models, "efficientnet-lite0", "1-fp32")
    assert models.default_version("efficientnet-lite0") == "1-fp32"


def test_labels_are_a_thousand_different_names(models):
    labels = built(models, "efficientnet-lite0", "1-fp32").labels
    assert len(set(labels)) == 1000
    assert [labels[index] for index in (0, 285, 967)] == ["tench", "Egyptian cat", "espresso"]
    assert (labels[134], labels[517]) == ("crane bird", "construction crane")


def test_a_second_build_finds_the_model_built(models):
    entry = built(models, "efficientnet-lite0", "1-int8")
    before = (entry.path / "model.json").stat().st_mtime_ns
    result = CliRunner().invoke(
        app,
        ["build", "efficientnet-lite0", "--precision", "int8", "--repository", str(models.root)],
    )
    assert result.exit_code == 0
    assert "already built" in result.output
    assert (entry.path / "model.json").stat().st_mtime_ns == before


def test_the_language_model_splits_text_as_it_was_trained_to(models):
    transformers = pytest.importorskip("transformers", reason="needs tidegate[models]")
    entry = built(models, "smollm2", "1")
    tokenizer = transformers.AutoTokenizer.from_pretrained(entry.path)
    assert tokenizer.tokenize("In 1234\n\n2.") == ["In", "Ġ", "1", "2", "3", "4", "ĊĊ", "2", "."]
    assert tokenizer.model_max_length == entry.language_model().context_length == 8192


def test_the_language_model_has_what_a_server_needs(models):
    entry = built(models, "smollm2", "1")
    metadata = entry.language_model()
    config = json.loads((entry.path / "config.json").read_text())
    generation = json.loads((entry.path / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"]) == (0.2, 0.9)
    assert metadata.chat_template
    assert (entry.path / "chat_template.jinja").is_file()
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == [metadata.architecture]
    assert metadata.source.licence == "Apache-2.0"
