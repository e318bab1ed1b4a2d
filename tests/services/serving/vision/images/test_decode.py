"""Decoding images of every kind, whole and damaged."""

import io
import re
import resource
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tidegate.image_files import InvalidImageError
from tidegate.serving.repository import ImageClassifier, Interpolation
from tidegate.serving.vision.images.decode import Geometry, decode, fit

# As `decode` sets it in a server; pytest replaces the filters.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


WHITE = (255, 255, 255)


def whole(height, width, max_pixels=1 << 24, background=WHITE):
    """Resizes an image without a crop."""
    return Geometry(height, width, None, Interpolation.BILINEAR, True, background, max_pixels)


def like(image):
    return whole(*image.shape[:2])


CLASSIFIER = Geometry(224, 224, 256, Interpolation.BILINEAR, True, WHITE, 64_000_000)


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:4:4"},
        {"progressive": True},
        {"optimize": True, "restart_marker_blocks": 2},
        {"exif": b"Exif\0\0nonsense"},
    ],
    ids=str,
)
def test_jpeg_of_any_making(picture, encode, options):
    image = picture()
    decoded = decode(encode(image, quality=95, **options), like(image))
    assert decoded.shape == image.shape
    assert difference(decoded, image).mean() < 3


def test_grey_jpeg_has_three_equal_channels(picture, encode):
    grey = picture()[:, :, 1]
    decoded = decode(encode(grey, quality=95), like(grey))
    assert (decoded == decoded[:, :, :1]).all()
    assert difference(decoded[:, :, 0], grey).mean() < 2


def test_cmyk_jpeg_becomes_rgb(picture, encode):
    image = picture()
    data = encode(Image.fromarray(image).convert("CMYK"), quality=95)
    assert difference(decode(data, like(image)), image).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_are_decoded_exactly(picture, encode, kind):
    image = picture()
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decode(encode(image, kind, **options), like(image)) == image).all()


def test_lossy_webp(picture, encode):
    image = picture()
    decoded = decode(encode(image, "WEBP", quality=95), like(image))
    assert difference(decoded, image).mean() < 4


BACKGROUNDS = [WHITE, (0, 0, 0), (10, 200, 90)]


def composed(rgb, alpha, background):
    """Pixels in front of a background, computed as floats."""
    share = alpha[:, :, None].astype(float) / 255
    return rgb * share + np.array(background, dtype=float) * (1 - share)


@pytest.mark.parametrize("background", BACKGROUNDS, ids=str)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_the_background(picture, encode, kind, mode, background):
    image = picture()
    alpha = np.tile(np.linspace(0, 255, image.shape[1]).astype(np.uint8), (image.shape[0], 1))
    stored = Image.fromarray(image).convert(mode[:-1])
    expected = composed(np.asarray(stored.convert("RGB")), alpha, background)
    stored.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encode(stored, kind, **options)
    geometry = whole(*image.shape[:2], background=background)
    assert np.abs(decode(data, geometry) - expected).max() <= 1


@pytest.mark.parametrize("background", BACKGROUNDS, ids=str)
@pytest.mark.parametrize("transparency", [None, 0, b"\0\x80\xff"], ids=str)
def test_palette_png(picture, encode, transparency, background):
    paletted = Image.fromarray(picture()).quantize(16)
    rgb = np.asarray(paletted.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    opacity = np.full(256, 255, dtype=np.uint8)
    given = b"" if transparency is None else bytes(1) if transparency == 0 else transparency
    opacity[: len(given)] = list(given)
    expected = composed(rgb, opacity[np.asarray(paletted)], background)
    data = encode(paletted, "PNG", **options)
    geometry = whole(*rgb.shape[:2], background=background)
    assert np.abs(decode(data, geometry) - expected).max() <= 1


def test_one_bit_png(encode):
    bits = np.indices((16, 24)).sum(axis=0) % 2 == 0
    decoded = decode(encode(Image.fromarray(bits), "PNG"), whole(16, 24))
    assert (decoded == np.where(bits, 255, 0)[:, :, None]).all()


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(height, width, depth, colour, rows, *extra):
    """A PNG file from its raw rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row for row in rows)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(lines)),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_shows_the_background(depth):
    most = (1 << depth) - 1
    # Four samples, of which the second is transparent.
    samples = [0, 1, 1, most] if depth == 1 else [0, most // 3, most // 3 + 1, most]
    bits = "".join(f"{sample:0{depth}b}" for sample in samples).ljust(8, "0")
    row = int(bits, 2).to_bytes(len(bits) // 8)
    data = png(1, 4, depth, 0, [row], chunk(b"tRNS", samples[1].to_bytes(2)))
    decoded = decode(data, whole(1, 4, background=(1, 2, 3)))[0]
    clear = [sample == samples[1] for sample in samples]
    for pixel, sample, transparent in zip(decoded, samples, clear, strict=True):
        grey = sample >> 8 if depth == 16 else sample * 255 // most
        assert pixel.tolist() == ([1, 2, 3] if transparent else [grey] * 3)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_shows_the_background(depth):
    colours = [[10, 20, 30], [200, 20, 30]]
    form = ">3H" if depth == 16 else ">3B"
    scaled = [[each * 257 if depth == 16 else each for each in colour] for colour in colours]
    row = b"".join(struct.pack(form, *colour) for colour in scaled)
    data = png(1, 2, depth, 2, [row], chunk(b"tRNS", struct.pack(">3H", *scaled[1])))
    assert decode(data, whole(1, 2))[0].tolist() == [colours[0], [255, 255, 255]]


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_png_keeps_its_upper_eight(picture, colour, channels):
    image = picture(40, 56)
    deep = np.full((40, 56, 4), 0xFFFF, dtype=">u2")
    deep[:, :, :3] = image.astype(np.uint16) << 8 | 0x5A
    if channels < 3:
        deep = deep[:, :, [1, 3]]
    deep = np.ascontiguousarray(deep[:, :, :channels])
    decoded = decode(png(40, 56, 16, colour, [row.tobytes() for row in deep]), whole(40, 56))
    expected = image if channels >= 3 else np.repeat(image[:, :, 1:2], 3, axis=2)
    assert difference(decoded, expected).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_picture(picture, encode, kind, orientation):
    image = picture(48, 64)
    # What a camera held in this orientation stores: the inverse of the rotation of the tag.
    stored = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image.transpose(1, 0, 2)[::-1],
        7: image.transpose(1, 0, 2)[::-1, ::-1],
        8: image.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 97, "subsampling": "4:4:4"}, "WEBP": {"lossless": True}}
    data = encode(np.ascontiguousarray(stored), kind, exif=exif, **options.get(kind, {}))
    assert difference(decode(data, like(image)), image).mean() < 2


@pytest.mark.parametrize("size", [(2100, 3000), (1500, 1100), (600, 700), (300, 260)])
def test_large_jpeg_is_scaled_while_it_is_decoded_and_looks_the_same(picture, encode, size):
    image = picture(*size)
    decoded = decode(encode(image, quality=95), CLASSIFIER)
    assert decoded.shape == (224, 224, 3)
    assert difference(decoded, fit(image, CLASSIFIER)).mean() < 3


def test_large_jpeg_is_never_held_in_full(encode):
    data = encode(np.zeros((4000, 4000, 3), dtype=np.uint8))
    tracemalloc.start()
    try:
        decode(data, CLASSIFIER)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 4000 * 4000 * 3 / 8


def test_profiles_and_text_in_a_file_do_not_matter(picture, encode):
    image = picture()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(image, "PNG", icc_profile=profile)
    assert (decode(data, like(image)) == image).all()


def test_the_first_picture_of_an_animation_is_used(picture, encode):
    frames = [Image.fromarray(picture(seed=seed)) for seed in (1, 30)]
    for kind in ("WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        expected = np.asarray(frames[0])
        assert difference(decode(data, like(expected)), expected).mean() < 2


def refusal(data, geometry=CLASSIFIER):
    with pytest.raises(InvalidImageError) as refused:
        decode(data, geometry)
    return str(refused.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty; send the bytes of a JPEG, PNG or WebP file"),
        (b"hello, this is text", "is not a JPEG, PNG or WebP file; convert it to one"),
        (b"\xff\xd8\xff", "is cut short: the JPEG ends before its pixels; send the whole file"),
        (b"GIF89a" + bytes(40), "is not a JPEG, PNG or WebP file"),
        (b"BM" + bytes(60), "is not a JPEG, PNG or WebP file"),
        (b"%PDF-1.7\n", "is not a JPEG, PNG or WebP file"),
        (
            b"\x89PNG\r\n\x1a\n",
            "is cut short or damaged: the PNG has no header; send the whole file",
        ),
    ],
)
def test_a_file_that_is_no_image_is_refused_with_the_fix(data, says):
    assert re.search(says, refusal(data))


@pytest.fixture(scope="module")
def files(picture, encode):
    """A small file of each format, with its size."""
    image = picture(40, 56)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encode(image, quality=90),
        "progressive": encode(image, quality=90, progressive=True),
        "jpeg with exif": encode(image, quality=90, exif=exif),
        "cmyk": encode(Image.fromarray(image).convert("CMYK")),
        "png": encode(image, "PNG", exif=exif),
        "palette": encode(Image.fromarray(image).quantize(16), "PNG", transparency=3),
        "interlaced": png(2, 2, 8, 2, [b"abcdef", b"ghijkl"]),
        "webp": encode(image, "WEBP", exif=exif),
        "lossless webp": encode(image, "WEBP", lossless=True),
    }


KINDS = (
    *("jpeg", "progressive", "jpeg with exif", "cmyk", "png", "palette"),
    *("interlaced", "webp", "lossless webp"),
)
SMALL = whole(16, 16, max_pixels=1 << 20)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_without_another_error(files, kind):
    data = files[kind]
    refused = 0
    for end in range(len(data)):
        try:
            decode(data[:end], SMALL)
        except InvalidImageError:
            refused += 1
    # The last bytes of a file may add nothing to the picture; any earlier cut must be detected.
    assert refused >= len(data) - 24


def decodes_or_refuses(data):
    try:
        assert decode(data, SMALL).shape == (16, 16, 3)
    except InvalidImageError as refused:
        assert str(refused)  # noqa: PT017 - that it is told why is what is tested


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    ),
    keep=st.floats(0.3, 1),
)
def test_a_damaged_file_is_decoded_or_refused(files, kind, changes, keep):
    data = bytearray(files[kind])
    for where, value in changes:
        data[int(where * len(data))] = value
    decodes_or_refuses(bytes(data[: int(keep * len(data)) + 1]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(where=st.integers(0, 160), value=st.integers(0, 255), more=st.integers(0, 255))
def test_a_damaged_header_is_decoded_or_refused(files, kind, where, value, more):
    data = bytearray(files[kind])
    at = min(where, len(data) - 2)
    data[at], data[at + 1] = value, more
    decodes_or_refuses(bytes(data))


@settings(max_examples=examples(150), deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"])
)
@example(b"\0\0\0\x0dIHDR", b"\x89PNG\r\n\x1a\n")
def test_random_bytes_are_refused(data, magic):
    with pytest.raises(InvalidImageError):
        decode(magic + data, SMALL)


@settings(max_examples=examples(150), deadline=None)
@given(
    exif=st.binary(max_size=80),
    prefix=st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]),
)
def test_a_jpeg_with_damaged_exif_is_not_rotated(files, exif, prefix):
    body = b"Exif\0\0" + prefix + exif
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = files["jpeg"][:2] + segment + files["jpeg"][2:]
    assert decode(data, SMALL).shape == (16, 16, 3)


def bomb(height, width):
    """A PNG of a few kilobytes whose header states this size."""
    return png(height, width, 8, 2, [bytes(1000)])


@pytest.mark.parametrize("size", [(8001, 8000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    data = bomb(*size)
    tracemalloc.start()
    try:
        message = refusal(data)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"is too large: {size[1]}×{size[0]} exceeds 64000000 pixels" in message
    assert most_bytes < 1 << 20


def test_a_bomb_whose_rows_are_missing_is_refused():
    assert "damaged or cut short" in refusal(bomb(7000, 7000))


def jpeg_that_says(encode, height, width):
    data = bytearray(encode(np.zeros((16, 16, 3), dtype=np.uint8)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def test_a_huge_jpeg_is_refused_by_its_header(encode):
    assert "is too large: 65000×60000" in refusal(jpeg_that_says(encode, 60000, 65000))


def webp_that_says(height, width):
    """An extended WebP file with a canvas of that size and one small frame."""
    frame = io.BytesIO()
    Image.new("RGB", (8, 8)).save(frame, "WEBP", lossless=True)
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + size + frame.getvalue()[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("size", [(16383, 16383), (65535, 65535), (2**24 - 1, 200)])
def test_a_huge_webp_is_refused_in_little_time_and_memory(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(webp_that_says(*size))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000  # KiB


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_limit_of_pixels_is_exact(picture, encode, kind):
    data = encode(picture(30, 50), kind)
    assert decode(data, whole(8, 8, max_pixels=1500)).shape == (8, 8, 3)
    assert "50×30 exceeds 1499 pixels" in refusal(data, whole(8, 8, max_pixels=1499))


def test_a_limit_above_pillows_own_holds(encode):
    data = bomb(14_000, 14_000)
    message = refusal(data, whole(8, 8, max_pixels=190_000_000))
    assert "14000×14000 exceeds 190000000" in message


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (256, 256), (224, 300)])
def test_any_size_fits(size):
    image = np.full((*size, 3), 130, dtype=np.uint8)
    for geometry in (CLASSIFIER, whole(32, 48)):
        fitted = fit(image, geometry)
        assert fitted.shape == (geometry.height, geometry.width, 3)
        assert (fitted == 130).all()
        assert fitted.flags.c_contiguous


def test_geometry_is_what_the_metadata_says():
    model = ImageClassifier.model_validate(
        {
            "kind": "image-classifier",
            "input": {"height": 96, "width": 128},
            "preprocessing": {
                "resize_shortest_side": 160,
                "interpolation": "bicubic",
                "antialias": False,
                "background": [1, 2, 3],
            },
        }
    )
    expected = Geometry(96, 128, 160, Interpolation.BICUBIC, False, (1, 2, 3), 7)
    assert Geometry.of(model, 7) == expected
