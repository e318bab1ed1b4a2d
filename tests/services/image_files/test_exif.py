"""Reading the orientation from EXIF data."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tidegate.image_files import exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("header", [b"", exif.HEADER])
def test_it_reads_the_orientation_that_pillow_writes(orientation, header):
    written = Image.Exif()
    written[0x010F] = "A camera"
    written[0x0112] = orientation
    data = header + written.tobytes().removeprefix(exif.HEADER)
    assert exif.orientation(data + b"and more") == orientation


@pytest.mark.parametrize(("order", "mark"), [("<", b"II*\0"), (">", b"MM\0*")])
@pytest.mark.parametrize(("kind", "form"), [(3, "H2x"), (4, "I")])
@pytest.mark.parametrize(("value", "read"), [(6, 6), (0, 1), (9, 1)])
def test_both_byte_orders_and_both_types_are_read(order, mark, kind, form, value, read):
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + struct.pack(order + form, value)
    assert exif.orientation(mark + struct.pack(f"{order}IH", 8, 1) + entry) == read


@given(st.binary(max_size=120), st.sampled_from([b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0"]))
def test_any_data_gives_an_orientation(data, start):
    assert 1 <= exif.orientation(start + data) <= 8
