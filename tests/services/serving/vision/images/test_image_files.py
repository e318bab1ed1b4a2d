"""Files as cameras and programs write them: harmless oddities and missing pixels."""

import random
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import (
    HARMLESS,
    JPEGS,
    SEQUENTIAL,
    SMALL,
    after_start,
    chunk,
    refusal,
    restarts_of,
    segment,
    stray_before,
    stray_between_segments,
    with_scan_parameters,
)
from PIL import Image, PngImagePlugin

from tidegate.serving.vision.images.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.mark.parametrize("kind", SEQUENTIAL)
@pytest.mark.parametrize("oddity", HARMLESS)
def test_harmless_oddities_of_a_jpeg_change_nothing(jpegs, kind, oddity):
    odd = HARMLESS[oddity](jpegs[kind])
    assert odd != jpegs[kind]
    assert (decode(odd, SMALL) == decode(jpegs[kind], SMALL)).all()


def test_several_harmless_oddities_change_nothing(jpegs):
    odd = jpegs["many restarts"]
    for make in HARMLESS.values():
        odd = make(odd)
    assert (decode(odd, SMALL) == decode(jpegs["many restarts"], SMALL)).all()


@pytest.mark.parametrize("which", [0, 3, 9, -1])
def test_stray_bytes_before_restart_markers_change_nothing(jpegs, which):
    plain = jpegs["many restarts"]
    odd = stray_before(plain, restarts_of(plain)[which])
    assert (decode(odd, SMALL) == decode(plain, SMALL)).all()


def test_stray_bytes_before_every_restart_marker_change_nothing(jpegs):
    plain = odd = jpegs["restarts"]
    for at in reversed(restarts_of(plain)):
        odd = stray_before(odd, at)
    assert (decode(odd, SMALL) == decode(plain, SMALL)).all()


@pytest.mark.parametrize("oddity", ["stray bytes between segments", "bytes after the end"])
def test_harmless_oddities_of_a_progressive_jpeg_change_nothing(jpegs, oddity):
    odd = HARMLESS[oddity](jpegs["progressive"])
    assert (decode(odd, SMALL) == decode(jpegs["progressive"], SMALL)).all()


def test_stray_bytes_between_the_scans_of_a_progressive_jpeg_change_nothing(jpegs):
    plain = jpegs["progressive"]
    scans = [found.start() for found in re.finditer(rb"\xff\xda", plain)]
    assert len(scans) > 4
    odd = plain
    for at in (scans[3], scans[1]):
        odd = stray_before(odd, at)
    assert (decode(odd, SMALL) == decode(plain, SMALL)).all()


def test_missing_pixels_are_found_behind_harmless_oddities(jpegs):
    plain = jpegs["many restarts"]
    restarts = restarts_of(plain)
    holed = plain[: restarts[8] - 6] + plain[restarts[8] :]
    assert "pixels are missing" in refusal(holed)
    assert "pixels are missing" in refusal(stray_before(holed, restarts[2]))
    assert "pixels are missing" in refusal(with_scan_parameters(holed, b"\0\0\0"))
    # Bytes behind the pixels tell nothing about the pixels.
    without_interval = holed[:-2] + segment(0xDD, b"\0\0") + holed[-2:]
    assert "pixels are missing" in refusal(stray_before(without_interval, restarts[2], count=40))
    without_one = plain[: restarts[4]] + plain[restarts[5] :]
    assert "damaged" in refusal(stray_before(without_one, restarts[2]))


def test_missing_pixels_of_one_scan_are_found_behind_harmless_oddities(jpegs):
    plain = jpegs["progressive"]
    scans = [found.start() for found in re.finditer(rb"\xff\xda", plain)]
    tables = plain.rindex(b"\xff\xc4", 0, scans[-1])
    holed = plain[: tables - 12] + plain[tables:]
    assert "missing" in refusal(stray_before(holed, plain.index(b"\xff\xc4", scans[0])))


def test_an_error_names_the_cause(jpegs, picture, encode):
    plain = jpegs["baseline"]
    assert "is cut short" in refusal(plain[: len(plain) // 2])
    assert "is cut short" in refusal(plain[:100])
    arithmetic = plain.replace(b"\xff\xc0", b"\xff\xc5", 1)
    assert "is a JPEG that cannot be decoded" in refusal(arithmetic)
    webp = encode(picture(), "WEBP")
    assert f"is cut short: the WebP has 60 of {len(webp)} bytes" in refusal(webp[:60])
    assert "does not state its size" in refusal(plain.replace(b"\xff\xc0", b"\xff\xfe", 1))


def text_png(encode, image):
    information = PngImagePlugin.PngInfo()
    information.add_text("comment", "x" * 3_000_000, zip=True)
    return encode(image, "PNG", pnginfo=information)


def profile_png(encode, image):
    return encode(image, "PNG", icc_profile=bytes(3_000_000))


def international_text_png(encode, image):
    information = PngImagePlugin.PngInfo()
    information.add_itxt("comment", "x" * 3_000_000, zip=True)
    return encode(image, "PNG", pnginfo=information)


@pytest.mark.parametrize("make", [text_png, profile_png, international_text_png])
def test_large_texts_and_profiles_in_a_png_change_nothing(picture, encode, make):
    image = picture(48, 64)
    assert (decode(make(encode, image), SMALL) == image).all()


ANCILLARY = (
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"iCCP",
    b"eXIf",
    b"pHYs",
    b"gAMA",
    b"cHRM",
    b"tIME",
    b"acTL",
)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(ANCILLARY),
    body=st.binary(max_size=60),
    checksum=st.none() | st.integers(0, 2**32 - 1),
    after_pixels=st.booleans(),
)
def test_damage_in_other_chunks_of_a_png_changes_nothing(files, kind, body, checksum, after_pixels):
    plain = files["png"]
    if kind == b"eXIf":
        # A complete orientation rotates the picture, as it should.
        body = b"XX" + body
    at = plain.index(b"IEND") - 4 if after_pixels else plain.index(b"IDAT") - 4
    damaged = plain[:at] + chunk(kind, body, checksum) + plain[at:]
    assert (decode(damaged, SMALL) == decode(plain, SMALL)).all()


def test_a_wrong_checksum_of_transparency_changes_nothing(picture, encode):
    paletted = encode(Image.fromarray(picture(48, 64)).quantize(16), "PNG", transparency=b"\0\x80")
    at = paletted.index(b"tRNS") + 4 + 2
    damaged = paletted[:at] + bytes(4) + paletted[at + 4 :]
    assert (decode(damaged, SMALL) == decode(paletted, SMALL)).all()


# APP0 and APP14 define the colours, so their bytes belong to the picture.
BESIDE_THE_PICTURE = (*range(0xE1, 0xEE), 0xEF, 0xFE)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(JPEGS),
    marker=st.sampled_from(BESIDE_THE_PICTURE),
    start=st.sampled_from(
        [b"", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0", b"JFXX\0"]
    ),
    body=st.binary(max_size=80),
)
def test_damage_in_the_metadata_of_a_jpeg_changes_nothing(files, kind, marker, start, body):
    plain = files[kind]
    damaged = after_start(plain, segment(marker, start + body))
    assert (decode(damaged, SMALL) == decode(plain, SMALL)).all()


def webp_with(file, kind, body, length=None):
    """A WebP file with one more chunk, whose stated length may be too long."""
    size = len(body) if length is None else length
    more = kind + struct.pack("<I", size) + body + bytes(len(body) % 2)
    content = b"WEBP" + file[12:] + more
    return b"RIFF" + struct.pack("<I", len(content)) + content


@settings(max_examples=60, deadline=None)
@given(
    file=st.sampled_from(["extended webp", "webp", "lossless webp"]),
    kind=st.sampled_from([b"EXIF", b"XMP ", b"ABCD", b"ICCP"]),
    body=st.binary(max_size=60),
    length=st.none() | st.integers(60, 2**32 - 1),
)
def test_damage_in_the_metadata_of_a_webp_changes_nothing(files, file, kind, body, length):
    plain = files[file]
    damaged = webp_with(plain, kind, b"XX" + body, length)
    assert (decode(damaged, SMALL) == decode(plain, SMALL)).all()


@pytest.fixture(scope="module")
def files(jpegs, picture, encode):
    image = picture(48, 64)
    noise = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return {
        **jpegs,
        "png": encode(image, "PNG"),
        "noisy png": encode(noise, "PNG"),
        "palette": encode(Image.fromarray(image).quantize(16), "PNG", transparency=3),
        "webp": encode(image, "WEBP", quality=90),
        "lossless webp": encode(noise, "WEBP", lossless=True),
        "extended webp": encode(image, "WEBP", quality=90, icc_profile=bytes(50)),
    }


# Where the pixels of a file begin, and how many bytes at its end are not pixels.
PIXELS = {"PNG": (b"IDAT", 24), "WebP": (b"WEBPVP8", 2), "JPEG": (b"\xff\xda", 12)}


@pytest.mark.parametrize(
    "kind",
    [*JPEGS, "png", "noisy png", "palette", "webp", "lossless webp", "extended webp"],
)
@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_truncated_in_its_pixels_is_refused(files, kind, where):
    data = files[kind]
    start, tail = next(pixels for pixels in PIXELS.values() if pixels[0] in data)
    begin, end = data.index(start) + 14, len(data) - tail
    assert begin < end
    refusal(data[: begin + int(where * (end - begin))])


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_truncated_jpeg_is_refused_whatever_oddities_it_has(jpegs, kind):
    numbers = random.Random(4)
    data = jpegs[kind]
    pixels = data.index(b"\xff\xda") + 14
    for _ in range(40):
        odd = data[: numbers.randrange(pixels, len(data) - 12)] + numbers.choice([b"", b"\xff\xd9"])
        for make in numbers.sample(
            [with_scan_parameters_zeroed, stray_between_segments, HARMLESS["a broken profile"]], 2
        ):
            odd = make(odd)
        refusal(odd)


def with_scan_parameters_zeroed(jpeg):
    return with_scan_parameters(jpeg, b"\0\0\0")


def test_a_jpeg_of_unusual_sampling_is_decoded(encode, picture):
    """The sampling factors of a grey JPEG mean nothing, so any value is accepted."""
    grey = encode(picture(48, 64)[:, :, 0], quality=90)
    at = grey.index(b"\xff\xc0") + 11
    odd = grey[:at] + b"\x41" + grey[at + 1 :]
    assert (decode(odd, SMALL) == decode(grey, SMALL)).all()


def test_no_file_makes_a_running_server_import_anything(tmp_path, jpegs, picture, encode):
    """The first decoded or refused file does not wait for an import."""
    files = [
        *jpegs.values(),
        b"no image",
        b"GIF89a" + bytes(40),
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"RIFF\0\0\0\0WEBP" + bytes(40),
        jpegs["baseline"][:200],
        HARMLESS["scan parameters"](jpegs["baseline"]),
        *(encode(picture(), kind) for kind in ("PNG", "WEBP")),
        encode(Image.fromarray(picture()).convert("RGBA"), "PNG"),
    ]
    for number, data in enumerate(files):
        (tmp_path / f"{number:03}").write_bytes(data)
    script = """
import pathlib, sys
from tidegate.serving.repository import Interpolation
from tidegate.serving.vision.images.decode import Geometry, decode
from tidegate.image_files import InvalidImageError
geometry = Geometry(48, 64, None, Interpolation.BILINEAR, True, (255, 255, 255), 1 << 24)
before = set(sys.modules)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes(), geometry)
    except InvalidImageError:
        pass
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("transform", [1, 2, 3, 255])
def test_colours_that_adobe_never_numbered_are_the_usual_ones(encode, mode, transform):
    usual = {"RGB": 1, "CMYK": 2}[mode]
    jpeg = encode(Image.new(mode, (64, 48), (40, 90, 200, 30)[: len(mode)]), "JPEG")
    at = jpeg.find(b"\xff\xee")
    rest = jpeg[:2] + jpeg[at + 16 :] if at >= 0 else jpeg

    def as_written(number):
        return after_start(rest, segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([number])))

    np.testing.assert_array_equal(
        decode(as_written(transform), SMALL), decode(as_written(usual), SMALL)
    )
