"""The photographs are real, available offline, and always the same."""

import numpy as np
import pytest
from PIL import Image

from tidegate.serving.build.errors import BuildError
from tidegate.serving.build.photographs import (
    SAMPLES,
    calibration_crops,
    read_photograph,
    write_samples,
)


def test_samples_are_written_as_readable_jpeg_files(tmp_path):
    paths = write_samples(tmp_path / "deep" / "samples")
    assert [path.name for path in paths] == [f"{sample.name}.jpg" for sample in SAMPLES]
    for path in paths:
        with Image.open(path) as photograph:
            assert photograph.format == "JPEG"
            assert min(photograph.size) >= 256


def test_a_sample_looks_like_the_photograph_it_was_written_from(tmp_path):
    (cat, *_) = write_samples(tmp_path)
    with Image.open(cat) as photograph:
        written = np.asarray(photograph, dtype=float)
    assert np.abs(written - read_photograph("chelsea.png")).mean() < 4


def test_a_grey_photograph_has_three_equal_channels():
    pixels = read_photograph("camera.png")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (512, 512, 3)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_an_unknown_photograph_is_an_error_that_names_it():
    with pytest.raises(BuildError, match=r"unicorn\.png is missing"):
        read_photograph("unicorn.png")


def test_the_same_seed_gives_the_same_views_and_another_gives_others():
    first = np.stack(list(calibration_crops(20, size=32, seed=5)))
    again = np.stack(list(calibration_crops(20, size=32, seed=5)))
    other = np.stack(list(calibration_crops(20, size=32, seed=6)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_views_are_planes_of_ordinary_brightness():
    views = np.stack(list(calibration_crops(34, size=48, seed=1)))
    assert views.dtype == np.float32
    assert views.shape == (34, 3, 48, 48)
    assert views.min() >= 0
    assert views.max() <= 1
    assert 0.2 < views.mean() < 0.7
