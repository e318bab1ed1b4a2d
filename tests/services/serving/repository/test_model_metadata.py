"""``model.json``: almost every field has a default, and a wrong field is an error."""

import json

import pytest

from tidegate.serving.repository import (
    Entry,
    ImageClassifier,
    LanguageModel,
    MetadataError,
    Precision,
    Preprocessing,
)
from tidegate.serving.repository import metadata as metadata_module
from tidegate.serving.repository.document import parse_metadata, render_metadata


def write(tmp_path, document):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_the_documented_minimal_example_is_an_imagenet_classifier(tmp_path):
    (example,) = [
        line.strip()
        for line in metadata_module.__doc__.splitlines()
        if line.strip().startswith("{")
    ]
    metadata = parse_metadata(write(tmp_path, json.loads(example)))
    assert isinstance(metadata, ImageClassifier)
    assert (metadata.model, metadata.labels) == ("model.onnx", "labels.txt")
    assert (metadata.input.layout, metadata.input.channels) == ("NCHW", "RGB")
    assert (metadata.input.height, metadata.input.width) == (224, 224)
    assert metadata.preprocessing.mean == (0.485, 0.456, 0.406)
    steps = metadata.preprocessing
    # torchvision's Resize(256) and CenterCrop(224) on a PIL image.
    assert (steps.resize_shortest_side, steps.interpolation) == (256, "bilinear")
    assert (steps.antialias, steps.crop, steps.background) == (True, "center", (255, 255, 255))
    assert metadata.precision.compute is Precision.FP32
    assert metadata.output.kind == "logits"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "'kind' is missing"),
        ({"kind": "robot"}, "'kind' must be one of image-classifier, language-model"),
        ({"kind": "image-classifier", "labls": "x"}, "'labls' is not a field"),
        (
            {"kind": "image-classifier", "preprocessing": {"maen": [0, 0, 0]}},
            "'preprocessing.maen'",
        ),
        (
            {"kind": "image-classifier", "preprocessing": {"std": [1, 0, 1]}},
            "'preprocessing.std.1'",
        ),
        (
            {"kind": "image-classifier", "preprocessing": {"interpolation": "area"}},
            "'preprocessing.interpolation': Input should be 'nearest', 'box', 'bilinear'",
        ),
        (
            {"kind": "image-classifier", "preprocessing": {"crop": "top"}},
            "'preprocessing.crop': Input should be 'center'",
        ),
        (
            {"kind": "image-classifier", "preprocessing": {"background": [0, 0, 256]}},
            "'preprocessing.background.2': Input should be less than or equal to 255",
        ),
        (
            {"kind": "image-classifier", "preprocessing": {"filter": "bicubic"}},
            "'preprocessing.filter' is not a field",
        ),
        ({"kind": "image-classifier", "input": {"height": 0}}, "'input.height'"),
        ({"kind": "image-classifier", "input": {"layout": "CHW"}}, "'input.layout'"),
        ({"kind": "image-classifier", "input": {"height": 300}}, "resize_shortest_side is 256"),
        ({"kind": "image-classifier", "precision": {"compute": "int9"}}, "'precision.compute'"),
        ({"kind": "image-classifier", "schema_version": 2}, "'schema_version'"),
        (
            {"kind": "image-classifier", "files": {"model.onnx": {"size_bytes": 3}}},
            "'files.model.onnx.sha256' is missing",
        ),
        ({"kind": "language-model", "quantization": {}}, "'quantization' is not a field"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, document, field):
    path = write(tmp_path, document)
    with pytest.raises(MetadataError) as caught:
        parse_metadata(path)
    assert str(path) in str(caught.value)
    assert field in str(caught.value)


def test_every_wrong_field_is_named_at_once(tmp_path):
    path = write(
        tmp_path, {"kind": "image-classifier", "colour": "red", "input": {"height": "tall"}}
    )
    with pytest.raises(MetadataError, match=r"input\.height.*colour|colour.*input\.height"):
        parse_metadata(path)


@pytest.mark.parametrize("unsafe", ["../model.onnx", "/etc/passwd", "a/../../b", "a\\b", ""])
@pytest.mark.parametrize("field", ["model", "labels"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, field, unsafe):
    with pytest.raises(MetadataError, match=f"'{field}'.*inside the model's own folder"):
        parse_metadata(write(tmp_path, {"kind": "image-classifier", field: unsafe}))


def test_a_digest_for_a_path_that_leaves_the_folder_is_refused(tmp_path):
    digest = {"sha256": "0" * 64, "size_bytes": 1}
    with pytest.raises(MetadataError, match="inside the model's own folder"):
        parse_metadata(write(tmp_path, {"kind": "language-model", "files": {"../x": digest}}))


def test_text_that_is_not_json_is_reported_with_its_position(tmp_path):
    path = tmp_path / "model.json"
    path.write_text('{"kind": \n oops}', encoding="utf-8")
    with pytest.raises(MetadataError, match="line 2, column 2"):
        parse_metadata(path)


@pytest.mark.parametrize(
    "metadata",
    [
        ImageClassifier(
            kind="image-classifier",
            name="net",
            preprocessing=Preprocessing(resize_shortest_side=None, scale=1, mean=(1, 2, 3)),
        ),
        LanguageModel(kind="language-model", name="talk", version="2", context_length=8192),
    ],
)
def test_written_metadata_reads_back_unchanged(tmp_path, metadata):
    path = tmp_path / "model.json"
    path.write_text(render_metadata(metadata), encoding="utf-8")
    assert parse_metadata(path) == metadata


def test_the_error_of_a_missing_file_says_what_to_write(tmp_path):
    with pytest.raises(MetadataError, match="image-classifier"):
        Entry.open(tmp_path)
