"""Files made to exhaust memory or time are refused before they do."""

import struct
import tracemalloc
import zlib

import numpy as np
import simplejpeg
from image_parts import SMALL, after_start, chunk, refusal, restarts_of, segment, stray_before
from PIL import Image, PngImagePlugin

from tidegate.serving.vision.images.decode import decode


def test_a_second_png_header_cannot_set_an_unchecked_size(encode):
    png = encode(Image.new("RGB", (16, 16), (40, 90, 200)), "PNG")
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 8192, 8192, 1, 0, 0, 0, 0))
    np.testing.assert_array_equal(decode(png[:33] + second + png[33:], SMALL), decode(png, SMALL))


def test_a_frame_that_the_header_reader_misses_is_not_decoded(encode, monkeypatch):
    # The decoder ignores the marker 02, and reads the frame that it hides as the file's header.
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


def of_many_scans(count):
    """A progressive JPEG of 64×64 with many scans, each of which refines nothing."""
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


def test_a_jpeg_of_endless_scans_is_refused(jpegs):
    assert decode(of_many_scans(100), SMALL).shape == (48, 64, 3)
    assert refusal(of_many_scans(101)).startswith("is a JPEG of more than 100 scans; convert")
    # Bytes in metadata or behind the picture that look like scans do not count.
    picture = jpegs["progressive"]
    many = segment(0xDA, bytes(4)) * 101
    np.testing.assert_array_equal(
        decode(after_start(picture, segment(0xFE, many)) + many, SMALL), decode(picture, SMALL)
    )


def test_a_jpeg_of_endless_segments_is_refused(jpegs):
    picture = jpegs["baseline"]
    comment = segment(0xFE, b"")
    np.testing.assert_array_equal(
        decode(after_start(picture, comment * 60_000), SMALL), decode(picture, SMALL)
    )
    hostile = [after_start(picture, comment * 70_000)]
    # Only the lenient decoder reads segments behind the pixels.
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


def test_endless_restart_markers_take_no_memory(jpegs):
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
