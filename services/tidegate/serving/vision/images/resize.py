"""Resizes an image and crops its centre, as PIL and torchvision do when a model is evaluated.

torchvision resizes the whole image and then crops it. This module computes only the part that
survives the crop: it maps the crop back onto the image as a box with fractional edges. The filter
may read pixels outside the box, so the result is the same. The EXIF rotation comes last, when the
image is small. The box is mapped through the rotation, so the result equals that of rotating first.

An image that is much larger than the model's input is first scaled down by a whole factor. The
factor leaves several times the needed pixels, as Pillow's `reducing_gap` does; the model's own
filter resizes the rest.

fast_image_resize (the package cykooz-resizer) does the resizing. It computes what Pillow computes,
with SIMD and without the GIL.
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
"""A JPEG that is scaled down while it is decoded keeps at least this multiple of the needed pixels
along each side."""

# The same multiple where pixels are averaged before the resize. Averaging costs less than decoding,
# so more pixels are kept.
_AVERAGED_AT_LEAST = 8.0

_FILTERS = {
    Interpolation.BOX: FilterType.box,
    Interpolation.BILINEAR: FilterType.bilinear,
    # Pillow's bicubic filter is the Catmull-Rom filter.
    Interpolation.BICUBIC: FilterType.catmull_rom,
    Interpolation.LANCZOS: FilterType.lanczos3,
}
# The widest filter, Lanczos, reads three pixels (of the smaller scale) to each side.
_LARGEST_SUPPORT = 3
_FEW_COLUMNS = 4
# The most pixels of the intermediate image, which is resized along one side only. Without this
# limit an extremely wide or tall image would first be enlarged along its short side.
_LARGEST_BETWEEN = 1 << 24
_OWN = threading.local()
# The workers already use every core; a thread pool inside OpenCV would only compete with them.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image is brought to a model's size.

    Attributes:
        height: Rows of the model's input.
        width: Columns of the model's input.
        shortest_side: The length in pixels to which the shortest side is resized before the centre
            crop; ``None`` stretches the whole image instead.
        interpolation: The filter.
        antialias: Whether the filter widens where the image shrinks.
        background: The colour behind transparent pixels, RGB, 0 to 255.
        max_pixels: Images with more pixels are refused.
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
        """Reads the geometry from a model's metadata."""
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
    """A part of an image, in fractional pixels."""

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
    """Returns how far an image may be scaled down before the resize; 1 or less means not at all.

    Args:
        columns: Columns of the stored image.
        rows: Rows of the stored image.
        orientation: The EXIF orientation, 1 to 8.
        geometry: The model's size.
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
    """Resizes the shortest side, crops the centre, and rotates the result upright.

    Args:
        pixels: uint8 RGB, any height × any width × 3, perhaps reduced.
        geometry: The model's size.
        orientation: The EXIF orientation, 1 to 8.
        size: Columns and rows of the image before it was reduced; by default those of ``pixels``.
        reduced: The factor by which ``pixels`` were reduced.

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
    # Like Pillow, resample first along the rows of the upright image.
    columns_first = orientation > 4
    resized = _resized(pixels, box, width, height, geometry, columns_first=columns_first)
    return _upright(resized, orientation)


def _stored_box(
    columns: int, rows: int, orientation: int, geometry: Geometry
) -> tuple[_Box, int, int]:
    """The part of the stored image to keep, and its width and height after the resize."""
    if orientation < 5:
        box = _upright_box(columns, rows, geometry)
        width, height = geometry.width, geometry.height
    else:
        seen = _upright_box(rows, columns, geometry)
        # Transposed: left to right in the upright image is top to bottom in the stored one.
        box = _Box(seen.top, seen.left, seen.bottom, seen.right)
        width, height = geometry.height, geometry.width
    left, right, top, bottom = box.left, box.right, box.top, box.bottom
    if orientation in {2, 3, 7, 8}:
        left, right = columns - right, columns - left
    if orientation in {3, 4, 6, 7}:
        top, bottom = rows - bottom, rows - top
    # Rounding must not move an edge out of the image.
    kept = _Box(max(0.0, left), max(0.0, top), min(columns, right), min(rows, bottom))
    return kept, width, height


def _upright_box(columns: int, rows: int, geometry: Geometry) -> _Box:
    """The part of the upright image to keep: torchvision's Resize and CenterCrop, to the pixel."""
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
    """Whether the filter widens, so that every pixel of a large image counts."""
    return geometry.antialias and geometry.interpolation is not Interpolation.NEAREST


def _averaged(pixels: Pixels, box: _Box, across: int, down: int) -> tuple[Pixels, _Box]:
    """Replaces each rectangle of pixels by its mean, in the part of the image around the box."""
    rows, columns = pixels.shape[:2]
    margin = math.ceil(_LARGEST_SUPPORT * _AVERAGED_AT_LEAST * 2)
    left = max(0, math.floor(box.left / across) - margin) * across
    top = max(0, math.floor(box.top / down) - margin) * down
    wide = min(math.ceil(columns / across), math.ceil(box.right / across) + margin) - left // across
    high = min(math.ceil(rows / down), math.ceil(box.bottom / down) + margin) - top // down
    part = pixels[top : top + high * down, left : left + wide * across]
    missing = high * down - part.shape[0], wide * across - part.shape[1]
    if any(missing):
        # Incomplete rectangles are filled with the edge pixels, as in a JPEG's last blocks.
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
    """Resamples a box of an image along one side and then along the other.

    The intermediate image is rounded to 8 bits, so the order matters to the last bit.
    """
    rows, columns = pixels.shape[:2]
    whole = [int(edge) for edge in (box.left, box.top, box.right, box.bottom)]
    left, top, right, bottom = whole
    if whole == [box.left, box.top, box.right, box.bottom] and (right - left, bottom - top) == (
        width,
        height,
    ):
        # A copy, because the next image may be decoded into the same memory.
        return pixels[top:bottom, left:right].copy()
    # Pass only the pixels that the filter reads, because they are copied.
    across = math.ceil(_LARGEST_SUPPORT * max(1.0, box.width / width)) + 1
    down = math.ceil(_LARGEST_SUPPORT * max(1.0, box.height / height)) + 1
    top, bottom = max(0, top - down), min(rows, bottom + down + 1)
    left, right = max(0, left - across), min(columns, right + across + 1)
    if columns < _FEW_COLUMNS * (right - left):
        # Whole rows are contiguous, so copying them is faster than copying a part of each.
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
    # The package's `ResizeAlg` cannot express `Algorithm.interpolation`.
    options.rust_options = options.rust_options.set_resize_alg(algorithm.value, kernel.value, 2)
    return options


def _resizer() -> Resizer:
    """Returns this thread's resizer; a shared one lets only one thread resize at a time."""
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
