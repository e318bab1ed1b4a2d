"""EXIF data is found wherever a file has it, and other data is not mistaken for it."""

import pytest
from image_parts import SMALL, after_start, chunk, exif_segment, orientation_data, segment

from tidegate.serving.vision.images.decode import decode

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
