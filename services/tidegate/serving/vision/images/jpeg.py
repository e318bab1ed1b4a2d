"""Decodes JPEG with libjpeg-turbo, at the smallest of its scales that keeps enough pixels.

libjpeg decodes strictly: its first warning ends the decoding. Few files have one.
:mod:`.lenient_jpeg` distinguishes harmless warnings from those that mean missing pixels.
"""

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from tidegate.image_files.headers import JpegHeader
from tidegate.serving.vision.images import lenient_jpeg

__all__ = ["decode_jpeg"]

Pixels = npt.NDArray[np.uint8]

# libjpeg has no fast transform for its other scales, so they cost more than they save.
_SCALES = (8, 4, 2)
_CMYK_COMPONENTS = 4


def decode_jpeg(data: bytes, header: JpegHeader, largest_reduction: float) -> tuple[Pixels, int]:
    """Decodes grey, colour and CMYK.

    Args:
        data: The file.
        header: What the file states before its pixels.
        largest_reduction: The largest factor by which the image may be scaled down.

    Returns:
        uint8 RGB in the stored orientation, and the factor by which it was scaled down.

    Raises:
        InvalidImageError: Pixels are missing, or libjpeg does not support this kind of JPEG.
    """
    scale = next((each for each in _SCALES if each <= largest_reduction), 1)
    width, height = -(-header.width // scale), -(-header.height // scale)
    if data.count(b"\xff\xda") > lenient_jpeg.MOST_SCANS:
        # Only perhaps too many: metadata may look like scans.
        lenient_jpeg.refuse_many_scans(data)
    colours = "CMYK" if header.components == _CMYK_COMPONENTS else "RGB"
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width)
    except ValueError as error:
        size = header.width, header.height
        pixels = lenient_jpeg.decode(data, str(error), colours, height, width, size=size)
    if colours == "CMYK":
        # All programs but the oldest store CMYK inverted, as Adobe does.
        pixels = np.asarray(Image.fromarray(255 - pixels, "CMYK").convert("RGB"))
    return pixels, scale
