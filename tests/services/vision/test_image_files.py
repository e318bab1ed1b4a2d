"""Files as cameras and programs write them: what is odd in them, and what is missing."""

import random
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tidegate.serving.repository import Interpolation
from tidegate.serving.vision.decode import Geometry, decode
from tidegate.serving.vision.errors import InvalidImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SMALL = Geometry(48, 64, None, Interpolation.BILINEAR, True, (255, 255, 255), 1 << 24)


def segment(marker, body):
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2) + body


def chunk(kind, body, checksum=None):
    if checksum is None:
        checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def after_start(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def orientation_data(value, order="<"):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHxx", 8, 1, 0x0112, 3, 1, value) + bytes(4)


def exif_segment(value, order="<"):
    return segment(0xE1, b"Exif\0\0" + orientation_data(value, order))


def restarts_of(jpeg):
    return [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", jpeg)]


def refusal(data):
    with pytest.raises(InvalidImageError) as refused:
        decode(data, SMALL)
    return str(refused.value)


@pytest.fixture(scope="module")
def jpegs(picture, encode):
    """JPEGs of one picture."""
    image = picture(48, 64)
    return {
        "baseline": encode(image, quality=90),
        "grey": encode(image[:, :, 0], quality=90),
        "restarts": encode(image, quality=90, restart_marker_rows=1),
        "many restarts": encode(image, quality=90, restart_marker_blocks=1),
        "progressive": encode(image, quality=90, progressive=True),
        "cmyk": encode(Image.fromarray(image).convert("CMYK"), quality=90),
    }


JPEGS = ("baseline", "grey", "restarts", "many restarts", "progressive", "cmyk")

C2PA = segment(0xEB, b"JP\0\1" + bytes(60_000)) * 4
PROFILE = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(50_000)) * 3
XMP = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='8'/>")
EXTENDED_XMP = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))
MPF = segment(0xE2, b"MPF\0" + orientation_data(3))
BEFORE_EXIF = {
    "nothing": b"",
    "C2PA": C2PA,
    "a large profile": PROFILE,
    "XMP": XMP,
    "extended XMP": XMP + EXTENDED_XMP * 3,
    "MPF": MPF,
    "fill bytes": b"\xff\xff\xff",
    "stray bytes": segment(0xFE, b"a comment") + b"\0\x01\x02",
    "a comment that names it": segment(0xFE, b"Exif\0\0" + orientation_data(8)),
}


@pytest.mark.parametrize("kind", ["baseline", "progressive", "cmyk"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("before", BEFORE_EXIF)
def test_exif_is_found_wherever_it_is_in_a_jpeg(jpegs, kind, order, before):
    plain = jpegs[kind]
    turned = after_start(plain, BEFORE_EXIF[before], exif_segment(3, order), XMP)
    assert (decode(turned, SMALL) == decode(plain, SMALL)[::-1, ::-1]).all()


def test_the_first_exif_of_a_jpeg_counts_and_xmp_does_not(jpegs):
    plain = jpegs["baseline"]
    assert (decode(after_start(plain, XMP), SMALL) == decode(plain, SMALL)).all()
    both = after_start(plain, exif_segment(3), exif_segment(4))
    assert (decode(both, SMALL) == decode(plain, SMALL)[::-1, ::-1]).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("after_pixels", [False, True])
def test_exif_is_found_wherever_it_is_in_a_png(picture, encode, order, after_pixels):
    image = picture(48, 64)
    plain = encode(image, "PNG")
    at = plain.index(b"IEND") - 4 if after_pixels else plain.index(b"IDAT") - 4
    turned = plain[:at] + chunk(b"eXIf", orientation_data(3, order)) + plain[at:]
    assert (decode(turned, SMALL) == image[::-1, ::-1]).all()


@pytest.mark.parametrize("header", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_is_found_in_a_webp(picture, encode, order, header):
    image = picture(48, 64)
    exif = header + orientation_data(3, order)
    turned = encode(image, "WEBP", lossless=True, exif=exif, icc_profile=bytes(70_000))
    assert (decode(turned, SMALL) == image[::-1, ::-1]).all()


def with_scan_parameters(jpeg, parameters):
    """As some phones write a baseline JPEG: the numbers of a progressive scan are not 0, 63, 0."""
    at = jpeg.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg[: end - 3] + parameters + jpeg[end:]


def stray_between_segments(jpeg, count=3):
    at = jpeg.index(b"\xff\xdb")
    return jpeg[:at] + bytes(range(1, count + 1)) + jpeg[at:]


def stray_before(jpeg, at, count=5):
    return jpeg[:at] + bytes(range(1, count + 1)) + jpeg[at:]


HARMLESS = {
    "scan parameters": lambda jpeg: with_scan_parameters(jpeg, b"\x00\x00\x00"),
    "stray bytes between segments": stray_between_segments,
    "stray bytes before the end": lambda jpeg: stray_before(jpeg, len(jpeg) - 2),
    "an unknown JFIF version": lambda jpeg: after_start(
        jpeg, segment(0xE0, b"JFIF\0\x07\x01" + bytes(7))
    ),
    "bytes after the end": lambda jpeg: jpeg + b"and more" * 9,
    "no end": lambda jpeg: jpeg[:-2],
    "an unknown Adobe colour": lambda jpeg: after_start(
        jpeg, segment(0xEE, b"Adobe" + bytes(6) + b"\x09")
    ),
    "a broken profile": lambda jpeg: after_start(
        jpeg, segment(0xE2, b"ICC_PROFILE\0\7\2" + bytes(40))
    ),
}
SEQUENTIAL = ("baseline", "grey", "restarts", "many restarts", "cmyk")


@pytest.mark.parametrize("kind", SEQUENTIAL)
@pytest.mark.parametrize("oddity", HARMLESS)
def test_what_is_odd_in_a_jpeg_without_loss_changes_nothing(jpegs, kind, oddity):
    odd = HARMLESS[oddity](jpegs[kind])
    assert odd != jpegs[kind]
    assert (decode(odd, SMALL) == decode(jpegs[kind], SMALL)).all()


def test_oddities_come_together(jpegs):
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
def test_what_is_odd_in_a_progressive_jpeg_changes_nothing(jpegs, oddity):
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
    # What stands behind the pixels says nothing of them.
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


def test_an_error_says_what_is_wrong(jpegs, picture, encode):
    plain = jpegs["baseline"]
    assert "is cut short" in refusal(plain[: len(plain) // 2])
    assert "is cut short" in refusal(plain[:100])
    arithmetic = plain.replace(b"\xff\xc0", b"\xff\xc5", 1)
    assert "is a JPEG that cannot be decoded" in refusal(arithmetic)
    webp = encode(picture(), "WEBP")
    assert f"is cut short: the WebP has 60 of {len(webp)} bytes" in refusal(webp[:60])
    assert "does not say how large it is" in refusal(plain.replace(b"\xff\xc0", b"\xff\xfe", 1))


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
def test_damage_in_what_a_png_has_beside_its_pixels_changes_nothing(
    files, kind, body, checksum, after_pixels
):
    plain = files["png"]
    if kind == b"eXIf":
        # An orientation that is whole turns the picture, as it should.
        body = b"XX" + body
    at = plain.index(b"IEND") - 4 if after_pixels else plain.index(b"IDAT") - 4
    damaged = plain[:at] + chunk(kind, body, checksum) + plain[at:]
    assert (decode(damaged, SMALL) == decode(plain, SMALL)).all()


def test_a_wrong_checksum_of_transparency_changes_nothing(picture, encode):
    paletted = encode(Image.fromarray(picture(48, 64)).quantize(16), "PNG", transparency=b"\0\x80")
    at = paletted.index(b"tRNS") + 4 + 2
    damaged = paletted[:at] + bytes(4) + paletted[at + 4 :]
    assert (decode(damaged, SMALL) == decode(paletted, SMALL)).all()


# APP0 and APP14 say what the colours are: their bytes belong to the picture.
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
    """A WebP file with one more chunk, which may say that it is longer than it is."""
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


# Where the pixels of a file begin, and how many bytes at its end are none of them.
PIXELS = {"PNG": (b"IDAT", 24), "WebP": (b"WEBPVP8", 2), "JPEG": (b"\xff\xda", 12)}


@pytest.mark.parametrize(
    "kind",
    [*JPEGS, "png", "noisy png", "palette", "webp", "lossless webp", "extended webp"],
)
@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_in_its_pixels_is_refused(files, kind, where):
    data = files[kind]
    start, tail = next(pixels for pixels in PIXELS.values() if pixels[0] in data)
    begin, end = data.index(start) + 14, len(data) - tail
    assert begin < end
    refusal(data[: begin + int(where * (end - begin))])


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_cut_jpeg_is_refused_whatever_else_is_odd_in_it(jpegs, kind):
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
    """The factors of a grey JPEG mean nothing; any will do."""
    grey = encode(picture(48, 64)[:, :, 0], quality=90)
    at = grey.index(b"\xff\xc0") + 11
    odd = grey[:at] + b"\x41" + grey[at + 1 :]
    assert (decode(odd, SMALL) == decode(grey, SMALL)).all()


def test_no_file_makes_a_running_server_import_anything(tmp_path, jpegs, picture, encode):
    """What is first decoded, or refused, does not wait for modules."""
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
from tidegate.serving.vision.decode import Geometry, decode
from tidegate.serving.vision.errors import InvalidImageError
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


def test_a_second_header_of_a_png_does_not_unfold_to_a_size_that_nobody_checked(encode):
    png = encode(Image.new("RGB", (16, 16), (40, 90, 200)), "PNG")
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 8192, 8192, 1, 0, 0, 0, 0))
    np.testing.assert_array_equal(decode(png[:33] + second + png[33:], SMALL), decode(png, SMALL))


def test_a_frame_hidden_from_the_first_look_is_not_decoded(encode, monkeypatch):
    # The decoder reads the marker 02 as nothing, and what it is to hide as the file's header.
    jpeg = encode(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xc2")
    frame = jpeg[at : at + 19]
    hidden = frame[:5] + struct.pack(">HH", 8192, 8192) + frame[9:]
    hidden += b"\xff\xfe" + (2 + len(frame)).to_bytes(2)
    hostile = jpeg[:at] + segment(0x02, hidden) + jpeg[at:]
    decoded = []
    decode_jpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg,
        "decode_jpeg",
        lambda data, *args, **kwargs: decoded.append(data) or decode_jpeg(data, *args, **kwargs),
    )
    assert refusal(hostile).startswith("is damaged")
    assert decoded == [hostile]


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


def of_many_scans(count):
    """A progressive JPEG of 64×64 that refines one coefficient after another, by nothing at all."""
    one_code = bytes([1]) + bytes(15)
    start = [
        segment(0xDB, bytes(1) + b"\1" * 64),
        segment(0xC2, b"\x08\0\x40\0\x40\x01\x01\x11\0"),
        segment(0xC4, b"\0" + one_code + b"\0"),
        # The one AC code is of a run of 64 blocks without coefficients: bit 0, then its six bits.
        segment(0xC4, b"\x10" + one_code + b"\x60"),
        segment(0xDA, b"\x01\x01\0\0\0\0") + bytes(8),
    ]
    steps = [
        (at, bits + 1 if bits < 13 else 0, bits)
        for at in range(1, 64)
        for bits in reversed(range(14))
    ]
    scans = [
        segment(0xDA, bytes([1, 1, 0, at, at, before << 4 | bits])) + b"\x01"
        for at, before, bits in steps[: count - 1]
    ]
    return b"\xff\xd8" + b"".join(start + scans) + b"\xff\xd9"


def test_a_jpeg_of_scans_without_end_is_refused(jpegs):
    assert decode(of_many_scans(100), SMALL).shape == (48, 64, 3)
    assert refusal(of_many_scans(101)).startswith("is a JPEG of more than 100 scans; convert")
    # What looks like scans in metadata or behind the picture is none.
    picture = jpegs["progressive"]
    many = segment(0xDA, bytes(4)) * 101
    np.testing.assert_array_equal(
        decode(after_start(picture, segment(0xFE, many)) + many, SMALL), decode(picture, SMALL)
    )


def test_a_jpeg_of_segments_without_end_is_refused(jpegs):
    picture = jpegs["baseline"]
    comment = segment(0xFE, b"")
    np.testing.assert_array_equal(
        decode(after_start(picture, comment * 60_000), SMALL), decode(picture, SMALL)
    )
    hostile = [after_start(picture, comment * 70_000)]
    # Behind the pixels, only a file that is looked at twice is read so far.
    hostile.append(picture[:-2] + b"\xff\xfe\0\3\0" * 70_000 + b"stray" + picture[-2:])
    for each in hostile:
        assert refusal(each).startswith("has more than 65536 segments; send the file as")


def test_a_png_of_a_palette_without_its_colours_is_refused():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
    start = PngImagePlugin._MAGIC + header
    for transparency in (b"", chunk(b"tRNS", b"\0"), chunk(b"tRNS", bytes(range(8)))):
        refused = refusal(start + transparency + pixels + chunk(b"IEND", b""))
        assert refused.startswith("is damaged: the PNG has no palette; send")


def test_restart_markers_without_end_take_no_memory(jpegs):
    plain = jpegs["many restarts"]
    stray = stray_before(plain, restarts_of(plain)[2], count=40)
    hostile = stray[:-2] + b"\xff\xd0" * (1 << 19) + stray[-2:]
    tracemalloc.start()
    try:
        assert "is damaged" in refusal(hostile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(hostile)
