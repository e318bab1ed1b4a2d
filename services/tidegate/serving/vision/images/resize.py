"""Resizes an image and cuts out its centre, as PIL and torchvision do when a model is evaluated.

torchvision resizes the whole image and then crops it. Here only the part that survives the crop is
computed: the crop is mapped back onto the image as a box with fractional edges, and the filter may
look beyond the box, so the pixels are the same. The turn that EXIF asks for comes last, when the
image is small; the box is mapped through it, so the result is that of turning first.

An image that is much larger than the model's input is scaled down by a whole factor first. The
factor leaves several times the pixels that are needed, as `reducing_gap` does in Pillow; what
remains is resized with the model's own filter.

The resizing itself is done by fast_image_resize (the package cykooz-resizer), which computes what
Pillow computes, with SIMD and without the GIL.
"""

import math
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from cykooz_resizer import (
    Algorithm,
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeOptions,
    Resizer,
)

from tidegate.serving.repository import ImageClassifier, Interpolation

__all__ = ["REDUCED_AT_LEAST", "Geometry", "fit", "reduction"]

Pixels = npt.NDArray[np.uint8]

REDUCED_AT_LEAST = 2.5
"""A JPEG that is scaled down as it is decoded keeps at least so many times the pixels that are
needed, along each side."""

# The same where pixels are averaged before they are resized. It costs less than decoding, so more
# are kept.
_AVERAGED_AT_LEAST = 8.0

_FILTERS = {
    Interpolation.BOX: FilterType.box,
    Interpolation.BILINEAR: FilterType.bilinear,
    # Pillow's bicubic filter is Catmull and Rom's.
    Interpolation.BICUBIC: FilterType.catmull_rom,
    Interpolation.LANCZOS: FilterType.lanczos3,
}
# The widest filter, Lanczos, looks at three pixels (of the smaller scale) to each side.
_LARGEST_SUPPORT = 3
_FEW_COLUMNS = 4
# Pixels of the image that is resized along one side only. A line of pixels would be widened first.
_LARGEST_BETWEEN = 1 << 24
_OWN = threading.local()
# Images are spread over the workers; a pool inside OpenCV would only fight with them for cores.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image is brought to a model's size.

    Attributes:
        height: rows of the model's input.
        width: columns of the model's input.
        shortest_side: pixels that the image's shortest side is brought to before the centre is cut
            out; ``None`` stretches the whole image instead.
        interpolation: the filter.
        antialias: whether the filter widens where the image shrinks.
        background: RGB, 0 to 255, of what lies behind transparent pixels.
        max_pixels: images with more pixels are refused.
    """

    height: int
    width: int
    shortest_side: int | None
    interpolation: Interpolation
    antialias: bool
    background: tuple[int, int, int]
    max_pixels: int

    @classmethod
    def of(cls, model: ImageClassifier, max_pixels: int) -> "Geometry":
        """Reads it from a model's metadata."""
        steps = model.preprocessing
        return cls(
            height=model.input.height,
            width=model.input.width,
            shortest_side=steps.resize_shortest_side,
            interpolation=steps.interpolation,
            antialias=steps.antialias,
            background=steps.background,
            max_pixels=max_pixels,
        )


@dataclass(frozen=True, slots=True)
class _Box:
    """A part of an image, in pixels and fractions of them."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


def reduction(columns: int, rows: int, orientation: int, geometry: Geometry) -> float:
    """How far an image may be scaled down before it is resized; 1 or less for not at all.

    Args:
        columns: of the image as it is stored.
        rows: of the image as it is stored.
        orientation: EXIF's, 1 to 8.
        geometry: the model's size.
    """
    if not _widens(geometry):
        return 1
    box, width, height = _stored_box(columns, rows, orientation, geometry)
    return min(box.width / width, box.height / height) / REDUCED_AT_LEAST


def fit(
    pixels: Pixels,
    geometry: Geometry,
    *,
    orientation: int = 1,
    size: tuple[int, int] | None = None,
    reduced: int = 1,
) -> Pixels:
    """Resizes so that the shortest side fits, cuts out the centre, and turns it upright.

    Args:
        pixels: uint8 RGB, any height × any width × 3, perhaps reduced.
        geometry: the model's size.
        orientation: EXIF's, 1 to 8.
        size: columns and rows of the image before it was reduced; those of ``pixels`` by default.
        reduced: the factor that ``pixels`` were reduced by.

    Returns:
        uint8 RGB, height × width × 3, contiguous.
    """
    columns, rows = size or (pixels.shape[1], pixels.shape[0])
    box, width, height = _stored_box(columns, rows, orientation, geometry)
    if reduced > 1:
        box = _Box(*(edge / reduced for edge in (box.left, box.top, box.right, box.bottom)))
    if _widens(geometry):
        across = max(1, int(box.width / width / _AVERAGED_AT_LEAST))
        down = max(1, int(box.height / height / _AVERAGED_AT_LEAST))
        if across > 1 or down > 1:
            pixels, box = _averaged(pixels, box, across, down)
    # What is seen as rows comes first, as in Pillow.
    columns_first = orientation > 4
    resized = _resized(pixels, box, width, height, geometry, columns_first=columns_first)
    return _upright(resized, orientation)


def _stored_box(
    columns: int, rows: int, orientation: int, geometry: Geometry
) -> tuple[_Box, int, int]:
    """What is kept of an image as it is stored, and the width and height that it gets."""
    if orientation < 5:
        box = _upright_box(columns, rows, geometry)
        width, height = geometry.width, geometry.height
    else:
        seen = _upright_box(rows, columns, geometry)
        # Along the diagonal: what is seen from left to right is stored from top to bottom.
        box = _Box(seen.top, seen.left, seen.bottom, seen.right)
        width, height = geometry.height, geometry.width
    left, right, top, bottom = box.left, box.right, box.top, box.bottom
    if orientation in {2, 3, 7, 8}:
        left, right = columns - right, columns - left
    if orientation in {3, 4, 6, 7}:
        top, bottom = rows - bottom, rows - top
    # Rounding must not carry an edge out of the image.
    kept = _Box(max(0.0, left), max(0.0, top), min(columns, right), min(rows, bottom))
    return kept, width, height


def _upright_box(columns: int, rows: int, geometry: Geometry) -> _Box:
    """What is kept of an image as it is seen: torchvision's Resize and CenterCrop, to the pixel."""
    shortest = geometry.shortest_side
    if shortest is None:
        return _Box(0, 0, columns, rows)
    if columns <= rows:
        resized_columns, resized_rows = shortest, int(shortest * rows / columns)
    else:
        resized_columns, resized_rows = int(shortest * columns / rows), shortest
    left = round((resized_columns - geometry.width) / 2)
    top = round((resized_rows - geometry.height) / 2)
    across, down = columns / resized_columns, rows / resized_rows
    return _Box(
        left * across,
        top * down,
        (left + geometry.width) * across,
        (top + geometry.height) * down,
    )


def _widens(geometry: Geometry) -> bool:
    """Whether every pixel of a large image counts."""
    return geometry.antialias and geometry.interpolation is not Interpolation.NEAREST


def _averaged(pixels: Pixels, box: _Box, across: int, down: int) -> tuple[Pixels, _Box]:
    """The part of an image that is kept, with each rectangle of pixels replaced by its mean."""
    rows, columns = pixels.shape[:2]
    margin = math.ceil(_LARGEST_SUPPORT * _AVERAGED_AT_LEAST * 2)
    left = max(0, math.floor(box.left / across) - margin) * across
    top = max(0, math.floor(box.top / down) - margin) * down
    wide = min(math.ceil(columns / across), math.ceil(box.right / across) + margin) - left // across
    high = min(math.ceil(rows / down), math.ceil(box.bottom / down) + margin) - top // down
    part = pixels[top : top + high * down, left : left + wide * across]
    missing = high * down - part.shape[0], wide * across - part.shape[1]
    if any(missing):
        # The last ones are filled up with what is at the edge, as in a JPEG's last blocks.
        part = np.asarray(
            cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE),
            dtype=np.uint8,
        )
    means = cv2.resize(part, (wide, high), interpolation=cv2.INTER_AREA)
    return np.asarray(means, dtype=np.uint8), _Box(
        (box.left - left) / across,
        (box.top - top) / down,
        (box.right - left) / across,
        (box.bottom - top) / down,
    )


def _resized(
    pixels: Pixels, box: _Box, width: int, height: int, geometry: Geometry, *, columns_first: bool
) -> Pixels:
    """A box of an image, resampled along one side and then along the other.

    What lies between is rounded to 8 bits, so the order matters to the last bit.
    """
    rows, columns = pixels.shape[:2]
    whole = [int(edge) for edge in (box.left, box.top, box.right, box.bottom)]
    left, top, right, bottom = whole
    if whole == [box.left, box.top, box.right, box.bottom] and (right - left, bottom - top) == (
        width,
        height,
    ):
        # A copy: the pixels may be in memory that the next image is decoded into.
        return pixels[top:bottom, left:right].copy()
    # Only what the filter can see is handed over, since it is copied.
    across = math.ceil(_LARGEST_SUPPORT * max(1.0, box.width / width)) + 1
    down = math.ceil(_LARGEST_SUPPORT * max(1.0, box.height / height)) + 1
    top, bottom = max(0, top - down), min(rows, bottom + down + 1)
    left, right = max(0, left - across), min(columns, right + across + 1)
    if columns < _FEW_COLUMNS * (right - left):
        # Whole rows are one piece of memory, and copied faster than a part of each.
        left, right = 0, columns
    rows_between, columns_between = width * (bottom - top), (right - left) * height
    if (columns_between if columns_first else rows_between) > _LARGEST_BETWEEN:
        columns_first = columns_between < rows_between
    seen = np.ascontiguousarray(pixels.reshape(rows, -1)[top:bottom, 3 * left : 3 * right])
    source = ImageData(right - left, bottom - top, PixelType.U8x3, seen.tobytes())
    result = ImageData(width, height, PixelType.U8x3)
    if columns_first:
        between = ImageData(right - left, height, PixelType.U8x3)
        first = CropBox(0, box.top - top, right - left, box.height)
        second = CropBox(box.left - left, 0, box.width, height)
    else:
        between = ImageData(width, bottom - top, PixelType.U8x3)
        first = CropBox(box.left - left, 0, box.width, bottom - top)
        second = CropBox(0, box.top - top, width, box.height)
    resizer = _resizer()
    resizer.resize(source, between, _options(geometry, first))
    resizer.resize(between, result, _options(geometry, second))
    return np.frombuffer(result.get_buffer(), dtype=np.uint8).reshape(height, width, 3)


def _options(geometry: Geometry, box: CropBox) -> ResizeOptions:
    options = ResizeOptions(crop_box=box)
    if geometry.interpolation is Interpolation.NEAREST:
        algorithm, kernel = Algorithm.nearest, FilterType.box
    else:
        algorithm = Algorithm.convolution if geometry.antialias else Algorithm.interpolation
        kernel = _FILTERS[geometry.interpolation]
    # `ResizeAlg` of the package has no way to say `Algorithm.interpolation`.
    options.rust_options = options.rust_options.set_resize_alg(algorithm.value, kernel.value, 2)
    return options


def _resizer() -> Resizer:
    """This thread's own: one that is shared lets only one thread resize at a time."""
    try:
        return _OWN.resizer
    except AttributeError:
        _OWN.resizer = Resizer()
        return _OWN.resizer


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes the rotation and mirroring that an EXIF orientation (1 to 8) describes."""
    match orientation:
        case 2:
            turned = pixels[:, ::-1]
        case 3:
            turned = pixels[::-1, ::-1]
        case 4:
            turned = pixels[::-1]
        case 5:
            turned = pixels.transpose(1, 0, 2)
        case 6:
            turned = pixels.transpose(1, 0, 2)[:, ::-1]
        case 7:
            turned = pixels.transpose(1, 0, 2)[::-1, ::-1]
        case 8:
            turned = pixels.transpose(1, 0, 2)[::-1]
        case _:
            return pixels
    return np.ascontiguousarray(turned)
