"""Real photographs without a download: samples to classify, and the calibration set for int8.

``scikit-image`` carries some photographs in its wheel. Five of them show objects of ImageNet
classes that EfficientNet-Lite0 recognises at every precision; these are the samples. All natural
ones together, cropped, scaled, mirrored and relit in many ways, are the calibration set. It is not
ImageNet, but it has real texture, edges and colour, on which activation ranges depend.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.serving.build.errors import BuildError, MissingPackageError
from tidegate.serving.build.libraries import required

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Planes = npt.NDArray[np.float32]

__all__ = ["SAMPLES", "Sample", "calibration_crops", "read_photograph", "write_samples"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A photograph that an ImageNet classifier should know.

    Attributes:
        name: The name of the written file, without its suffix.
        file: Its file in ``skimage.data``.
        classes: The correct ImageNet classes, the expected one first.
        shows: What it shows.
    """

    name: str
    file: str
    classes: tuple[int, ...]
    shows: str


SAMPLES = (
    Sample("cat", "chelsea.png", (282, 281, 285), "Chelsea, a tabby cat"),
    Sample("coffee", "coffee.png", (967, 504, 968), "an espresso on a table"),
    Sample("motorcycle", "motorcycle_right.png", (665, 670), "a motorcycle in a garage"),
    Sample("rocket", "rocket.jpg", (657, 744, 812), "a rocket on its launch pad"),
    Sample("tripod", "camera.png", (872, 759), "a man behind a camera on a tripod, in grey"),
)
"""The photographs that :func:`write_samples` writes."""

_CALIBRATION = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)


def write_samples(folder: Path, *, quality: int = 95) -> tuple[Path, ...]:
    """Writes the samples as JPEG files, such as ``cat.jpg``.

    Args:
        folder: The folder, which is created if needed.
        quality: The JPEG quality, 1 to 100.

    Returns:
        The files, in the order of :data:`SAMPLES`.

    Raises:
        MissingPackageError: The package scikit-image or Pillow is not installed.
        OSError: The folder is not writable.
    """
    image = required("PIL.Image", "pillow")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for sample in SAMPLES:
        path = folder / f"{sample.name}.jpg"
        with image.open(_folder() / sample.file) as photograph:
            photograph.save(path, quality=quality)
        written.append(path)
    return tuple(written)


def read_photograph(file: str) -> "Pixels":
    """Reads a photograph of ``skimage.data``.

    Args:
        file: Its file name, such as ``chelsea.png``.

    Returns:
        RGB pixels of shape ``(height, width, 3)``; a grey photograph has three equal channels.

    Raises:
        MissingPackageError: The package scikit-image or Pillow is not installed.
        BuildError: The installed scikit-image does not have the file.
    """
    np = required("numpy")
    image = required("PIL.Image", "pillow")
    path = _folder() / file
    if not path.is_file():
        raise BuildError(f"{path} is missing; install scikit-image from its wheel")
    with image.open(path) as photograph:
        pixels: Pixels = np.asarray(photograph.convert("RGB"))
    return pixels


def calibration_crops(count: int, *, size: int, seed: int) -> "Iterator[Planes]":
    """Yields random views of the photographs, the same for the same seed.

    Each view is a random crop of 15 to 100 % of the area with an aspect ratio of 3:4 to 4:3,
    resized to a square by the network's own filter (antialiased bicubic). Half of the views are
    mirrored. Exposure (±30 %), contrast (±30 %) and, for some, colour balance (±25 %) vary.

    Args:
        count: The number of views.
        size: Their height and width in pixels.
        seed: The seed of the random numbers.

    Yields:
        RGB planes of shape ``(3, size, size)`` with values from 0 to 1.

    Raises:
        MissingPackageError: The package scikit-image, Pillow or numpy is not installed.
    """
    np = required("numpy")
    image = required("PIL.Image", "pillow")
    random = np.random.default_rng(seed)
    photographs = [read_photograph(file) for file in _CALIBRATION]
    for index in range(count):
        pixels = photographs[index % len(photographs)]
        height, width = pixels.shape[:2]
        area = random.uniform(0.15, 1.0) * height * width
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width = min(width, round(float(np.sqrt(area * ratio))))
        crop_height = min(height, round(float(np.sqrt(area / ratio))))
        left = int(random.integers(0, width - crop_width + 1))
        top = int(random.integers(0, height - crop_height + 1))
        view = image.fromarray(pixels).resize(
            (size, size),
            image.Resampling.BICUBIC,
            box=(left, top, left + crop_width, top + crop_height),
        )
        planes = np.asarray(view, dtype=np.float32).transpose(2, 0, 1) / 255
        if random.random() < 0.5:
            planes = planes[:, :, ::-1]
        if random.random() < 0.3:
            planes = planes * random.uniform(0.75, 1.25, (3, 1, 1))
        planes = planes * random.uniform(0.7, 1.3)
        grey = planes.mean()
        planes = (planes - grey) * random.uniform(0.7, 1.3) + grey
        yield np.clip(planes, 0, 1).astype(np.float32)


def _folder() -> Path:
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError("scikit-image")
    return Path(found.submodule_search_locations[0]) / "data"
