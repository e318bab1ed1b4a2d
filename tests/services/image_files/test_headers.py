"""Reading the size of image files: what decoders say, for files that cameras and programs write."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_parts import HARMLESS, after_start, segment
from PIL import Image

from tidegate.image_files import ImageSize, InvalidImageError, read_size
from tidegate.image_files.headers import MOST_SEGMENTS, PNG_SIGNATURE

WIDTH, HEIGHT = 333, 77


def picture(mode="RGB"):
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([rows, columns, rows + columns], axis=2) % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def exif():
    data = Image.Exif()
    data[0x0112] = 6
    return data


FILES = {
    "JPEG": lambda: encoded("JPEG"),
    "JPEG, progressive": lambda: encoded("JPEG", progressive=True),
    "JPEG, CMYK": lambda: encoded("JPEG", "CMYK"),
    "JPEG, turned by EXIF": lambda: encoded("JPEG", exif=exif()),
    "PNG": lambda: encoded("PNG"),
    "PNG, palette": lambda: encoded("PNG", "P"),
    "WebP": lambda: encoded("WEBP"),
    "WebP, lossless": lambda: encoded("WEBP", lossless=True),
    "WebP, alpha": lambda: encoded("WEBP", "RGBA"),
    "WebP, lossless alpha": lambda: encoded("WEBP", "RGBA", lossless=True),
    "WebP, EXIF": lambda: encoded("WEBP", exif=exif()),
    "WebP, animated": lambda: encoded(
        "WEBP", save_all=True, append_images=[picture().rotate(180)], duration=40
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_it_reads_the_size_that_was_written(name):
    assert read_size(FILES[name]()) == ImageSize(WIDTH, HEIGHT)


@pytest.mark.parametrize("name", FILES)
def test_a_header_that_is_cut_short_is_refused(name):
    data = FILES[name]()
    for length in (1, 4, 11, 12, 16, 20, 23):
        with pytest.raises(InvalidImageError):
            read_size(data[:length])


@pytest.mark.parametrize("name", HARMLESS)
def test_it_reads_the_oddities_that_decoders_accept(name):
    assert read_size(HARMLESS[name](encoded("JPEG"))) == ImageSize(WIDTH, HEIGHT)


def test_a_large_size_costs_no_more_than_its_header():
    header = b"IHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    data = PNG_SIGNATURE + (13).to_bytes(4) + header + bytes(4)
    assert read_size(data) == ImageSize(60_000, 60_000)


def test_files_of_endless_small_parts_are_refused_soon():
    jpeg = after_start(encoded("JPEG"), segment(0xFE, b"") * (MOST_SEGMENTS + 1))
    with pytest.raises(InvalidImageError, match="has more than 65536 segments"):
        read_size(jpeg)
    with pytest.raises(InvalidImageError, match="the WebP does not state its size"):
        read_size(b"RIFF\0\0\0\0WEBP" + (b"ICCP" + bytes(4)) * 100_000 + encoded("WEBP")[12:])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty; send the bytes"),
        (b"GIF89a" + bytes(40), "is not a JPEG, PNG or WebP file; convert it"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "is not a JPEG, PNG or WebP file"),
        (b"\xff\xd8\xff\xd9" + bytes(9), "does not state its size"),
        (PNG_SIGNATURE + b"\0\0\0\x0dIDAT" + bytes(20), "the PNG has no header"),
    ],
)
def test_other_files_are_refused_with_the_reason(data, problem):
    with pytest.raises(InvalidImageError, match=problem):
        read_size(data)


@given(
    st.sampled_from([b"\xff\xd8\xff", PNG_SIGNATURE, b"RIFF\x10\0\0\0WEBP", b""]),
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"\xff\xc0", b"\xff\xda", b"IHDR", b"VP8 ", b"VP8L", b"VP8X"]),
        )
    ),
)
def test_any_bytes_have_a_size_or_a_reason(start, parts):
    with contextlib.suppress(InvalidImageError):
        size = read_size(start + b"".join(parts))
        assert min(size.width, size.height) >= 0
