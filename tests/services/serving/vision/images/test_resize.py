"""The pixels that a model takes are those of PIL and torchvision's evaluation transforms."""

import numpy as np
import pytest
from PIL import Image

from tidegate.serving.repository import Interpolation
from tidegate.serving.vision.images import resize
from tidegate.serving.vision.images.decode import Geometry, decode, fit

WHITE = (255, 255, 255)
ANTIALIASED = ("box", "bilinear", "bicubic", "lanczos")
SIZES = [(256, 256), (300, 451), (451, 300), (427, 640), (513, 511), (40, 57), (100, 199), (1, 7)]


def geometry(filter_name="bilinear", *, shortest=256, height=224, width=224, antialias=True):
    return Geometry(height, width, shortest, Interpolation(filter_name), antialias, WHITE, 1 << 27)


def textured(height, width, seed=1):
    """Noise over a gradient: every pixel and every edge of the filter counts."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 255 : height * 1j, 0 : 255 : width * 1j]
    planes = np.stack([rows, columns, (rows + columns) / 2], axis=2)
    return np.clip(planes + random.normal(0, 40, planes.shape), 0, 255).astype(np.uint8)


def by_pillow(image, filter_name, shortest=256, height=224, width=224):
    """torchvision's Resize and CenterCrop on a PIL image, as in its source."""
    picture = Image.fromarray(image)
    kernel = Image.Resampling[filter_name.upper()]
    if shortest is None:
        return np.asarray(picture.resize((width, height), kernel))
    short, long = sorted(picture.size)
    resized_long = int(shortest * long / short)
    size = (shortest, resized_long) if picture.width <= picture.height else (resized_long, shortest)
    resized = picture.resize(size, kernel)
    top = round((resized.height - height) / 2.0)
    left = round((resized.width - width) / 2.0)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def differences(one, other):
    return np.abs(one.astype(int) - other.astype(int))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("filter_name", ANTIALIASED)
def test_an_image_is_resized_and_cropped_as_by_pillow(filter_name, size):
    image = textured(*size)
    found = differences(fit(image, geometry(filter_name)), by_pillow(image, filter_name))
    # Pillow computes its filter in 22 bits, the SIMD code in 16: sometimes they round differently.
    assert found.max() <= 2
    assert (found > 0).mean() < 0.02


@pytest.mark.parametrize("size", [(301, 451), (97, 190)], ids=str)
# The box ends between two pixels here, so rounding may choose either.
@pytest.mark.parametrize("filter_name", ANTIALIASED[1:])
def test_an_image_is_stretched_as_by_pillow(filter_name, size):
    image = textured(*size)
    shape = {"shortest": None, "height": 120, "width": 80}
    found = differences(
        fit(image, geometry(filter_name, **shape)), by_pillow(image, filter_name, **shape)
    )
    assert found.max() <= 2
    assert (found > 0).mean() < 0.02


def test_a_very_large_image_is_averaged_first_and_looks_the_same():
    image = np.random.default_rng(5).integers(0, 256, (4100, 5003, 3), dtype=np.uint8)
    found = differences(fit(image, geometry("bicubic")), by_pillow(image, "bicubic"))
    assert found.max() <= 3
    assert found.mean() < 0.5


@pytest.mark.parametrize("size", [(9000, 300), (200, 8000)], ids=str)
def test_a_long_image_looks_the_same(size):
    image = textured(*size)
    # Pillow resizes a very tall image vertically first, so more pixels round differently.
    assert differences(fit(image, geometry()), by_pillow(image, "bilinear")).mean() < 0.3


def test_a_very_tall_image_is_stretched_in_little_memory():
    image = np.full((400_000, 20, 3), 90, dtype=np.uint8)
    assert (fit(image, geometry(shortest=None)) == 90).all()


def test_without_antialiasing_the_filter_stays_as_narrow_as_it_is():
    image = textured(700, 700)
    narrow = fit(image, geometry("bilinear", antialias=False, shortest=None)).astype(float)
    # Each pixel of the result is between its four nearest pixels.
    at = (np.arange(224) + 0.5) * 700 / 224 - 0.5
    low = np.floor(at).astype(int)
    share = (at - low)[:, None, None]
    rows = image[low] * (1 - share) + image[low + 1] * share
    across = (at - low)[None, :, None]
    expected = rows[:, low] * (1 - across) + rows[:, low + 1] * across
    assert np.abs(narrow - expected).max() <= 1.5
    assert np.abs(narrow - fit(image, geometry("bilinear", shortest=None))).mean() > 5


def test_nearest_copies_pixels_unchanged():
    image = textured(300, 451)
    assert (
        fit(image, geometry("nearest", shortest=None)) == by_pillow(image, "nearest", None)
    ).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(301, 452), (452, 301), (1500, 2201)], ids=str)
def test_a_rotated_image_is_resized_as_if_it_had_been_rotated_first(encode, orientation, size):
    stored = textured(*size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    upright = Image.fromarray(stored) if turn is None else Image.fromarray(stored).transpose(turn)
    data = encode(stored, "PNG", exif=exif, compress_level=1)
    shape = {"height": 224, "width": 192}
    found = differences(
        decode(data, geometry("bicubic", **shape)),
        by_pillow(np.asarray(upright), "bicubic", **shape),
    )
    assert found.max() <= 2
    assert (found > 0).mean() < 0.02


@pytest.mark.parametrize("scale", [1.3, 2.2, 3.7, 6.5])
def test_a_jpeg_that_is_scaled_while_it_is_decoded_is_near_to_pillow(encode, scale):
    small = Image.fromarray(textured(300, 400)).resize((75, 57)).resize((400, 300))
    large = small.resize((int(400 * scale), int(300 * scale)), Image.Resampling.BICUBIC)
    data = encode(large, quality=95)
    found = differences(decode(data, geometry("bicubic")), by_pillow(np.asarray(large), "bicubic"))
    assert found.mean() < 1.5


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("filter_name", "antialias"), [("nearest", True), ("bilinear", False)])
@pytest.mark.parametrize("shape", [(1 << 18, 1), (1, 1 << 18)])
def test_a_one_pixel_image_side_is_not_enlarged_before_the_other_shrinks(
    monkeypatch, shape, filter_name, antialias, orientation
):
    sizes = []
    image_data = resize.ImageData
    monkeypatch.setattr(
        resize,
        "ImageData",
        lambda width, height, *rest: (
            sizes.append(width * height) or image_data(width, height, *rest)
        ),
    )
    line = np.repeat(np.arange(256, dtype=np.uint8), (1 << 18) // 256)
    image = np.repeat(line[:, np.newaxis], 3, axis=1).reshape(*shape, 3)
    how = geometry(filter_name, shortest=None, height=256, width=256, antialias=antialias)
    resized = fit(image, how, orientation=orientation)
    assert max(sizes) <= 1 << 18
    seen = resized if (shape[1] == 1) == (orientation == 1) else resized.transpose(1, 0, 2)
    # A quarter turn to the right shows the bottom first.
    expected = line[:: 1 << 10]
    if orientation == 6 and shape[1] == 1:
        expected = expected[::-1]
    np.testing.assert_array_equal(seen[:, 7, 1], expected)
