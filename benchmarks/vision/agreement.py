"""Compares the server's preprocessing with an independent implementation.

It makes a corpus of pictures from the photographs that ship with scikit-image: sizes, crops, EXIF
orientations, colour modes, transparency, qualities, JPEG, PNG and WebP. Each is classified twice:

- by the server's decoding and resizing, with the fp32 network in ONNX Runtime;
- by an independent implementation: PIL opens, rotates, composes and resizes, numpy crops and
  normalises, and the same network runs in ONNX Runtime.

One photograph is also stored in six sizes, which should get nearly the same scores.

    .venv/bin/python benchmarks/vision/agreement.py

prints a table and exits with 1 if the two agree less than they must.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

from tidegate.serving.build.photographs import read_photograph
from tidegate.serving.repository import Repository
from tidegate.serving.vision.images.decode import Geometry, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

__all__ = [
    "Classifier",
    "Comparison",
    "Picture",
    "agrees",
    "compare",
    "corpus",
    "six_sizes",
    "spread_of",
]

MODEL, VERSION = "efficientnet-lite0", "1-fp32"
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
_MAX_PIXELS = 64_000_000
_ORIENTATION = 0x0112
_NEAR, _JPEG_NEAR, _SHARE = 0.01, 0.05, 0.95
_SIZES = (256, 384, 512, 768, 1024, 2048)
_SIX_NEAR = 0.1


@dataclass(frozen=True, slots=True)
class Picture:
    """A file of the corpus.

    Attributes:
        name: Photograph and variation.
        format: JPEG, PNG or WEBP.
        data: The file.
    """

    name: str
    format: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of both implementations for a picture.

    Attributes:
        picture: The file.
        same: Whether the top class is the same.
        apart: The largest difference of a score.
    """

    picture: Picture
    same: bool
    apart: float


class Classifier:
    """The fp32 network in ONNX Runtime, with both implementations of preprocessing.

    Args:
        models: The model repository.
    """

    def __init__(self, models: Path) -> None:
        entry = Repository(models).find(MODEL, VERSION)
        self._document = json.loads((entry.path / "model.json").read_text())
        self._geometry = Geometry.of(entry.image_classifier(), _MAX_PIXELS)
        self._session = onnxruntime.InferenceSession(entry.model_path)

    def by_server(self, data: bytes) -> Floats:
        """Scores an image that the server's code decodes and resizes."""
        return self._scores(decode(data, self._geometry))

    def by_reference(self, data: bytes) -> Floats:
        """Scores an image that PIL decodes and resizes."""
        return self._scores(self._prepared(data))

    def _prepared(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Applies torchvision's Resize and CenterCrop to a PIL image."""
        steps, size = self._document["preprocessing"], self._document["input"]
        image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, (*steps["background"], 255))
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        image = image.convert("RGB")
        shortest = steps["resize_shortest_side"]
        short, long = sorted(image.size)
        other = int(shortest * long / short)
        target = (shortest, other) if image.width <= image.height else (other, shortest)
        pixels = np.asarray(image.resize(target, Image.Resampling[steps["interpolation"].upper()]))
        top = round((pixels.shape[0] - size["height"]) / 2.0)
        left = round((pixels.shape[1] - size["width"]) / 2.0)
        return pixels[top : top + size["height"], left : left + size["width"]]

    def _scores(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        steps = self._document["preprocessing"]
        values = pixels.astype(np.float32) * np.float32(steps["scale"])
        values = (values - np.float32(steps["mean"])) / np.float32(steps["std"])
        batch = np.ascontiguousarray(values.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)
        logits = np.asarray(self._session.run(None, {"input": batch})[0])[0]
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum(), dtype=np.float32)


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


def corpus(photographs: tuple[str, ...] = PHOTOGRAPHS) -> Iterator[Picture]:
    """Yields every photograph in every variation.

    Args:
        photographs: Files of ``skimage.data``.
    """
    for index, file in enumerate(photographs):
        image = Image.fromarray(read_photograph(file))
        name = Path(file).stem
        wide, high = image.size
        third = image.crop((wide // 5, high // 6, wide - wide // 7, high))
        faded = image.convert("RGBA")
        faded.putalpha(Image.linear_gradient("L").resize(image.size))
        orientation = 2 + index % 7
        variations: dict[str, tuple[str, bytes]] = {
            "q95": ("JPEG", _file(image, "JPEG", quality=95)),
            "q60": ("JPEG", _file(image, "JPEG", quality=60)),
            "progressive": ("JPEG", _file(image, "JPEG", progressive=True)),
            "half": ("JPEG", _file(_scaled(image, 0.6), "JPEG", quality=90)),
            "large": ("JPEG", _file(_scaled(image, 3.1), "JPEG", quality=90)),
            "turned": ("JPEG", _file(image, "JPEG", quality=90, exif=_turned(orientation))),
            "grey": ("JPEG", _file(image.convert("L"), "JPEG", quality=90)),
            "cmyk": ("JPEG", _file(image.convert("CMYK"), "JPEG", quality=90)),
            "png": ("PNG", _file(image, "PNG")),
            "crop": ("PNG", _file(third, "PNG")),
            "double": ("PNG", _file(_scaled(image, 2.3), "PNG", compress_level=1)),
            "palette": ("PNG", _file(image.quantize(128), "PNG")),
            "transparent": ("PNG", _file(faded, "PNG")),
            "turned png": ("PNG", _file(image, "PNG", exif=_turned(9 - orientation))),
            "webp": ("WEBP", _file(image, "WEBP", quality=85)),
            "transparent webp": ("WEBP", _file(faded, "WEBP", lossless=True, method=0)),
        }
        for variation, (kind, data) in variations.items():
            yield Picture(f"{name}, {variation}", kind, data)


def six_sizes(file: str = "chelsea.png") -> list[bytes]:
    """Writes one photograph as JPEG files of six sizes.

    Args:
        file: A file of ``skimage.data``.
    """
    image = Image.fromarray(read_photograph(file))
    return [_file(_scaled(image, size / min(image.size)), "JPEG", quality=95) for size in _SIZES]


def compare(classifier: Classifier, picture: Picture) -> Comparison:
    """Classifies a picture with both implementations.

    Args:
        classifier: The network.
        picture: The file.
    """
    ours = classifier.by_server(picture.data)
    theirs = classifier.by_reference(picture.data)
    return Comparison(
        picture, bool(ours.argmax() == theirs.argmax()), float(np.abs(ours - theirs).max())
    )


def agrees(found: Sequence[Comparison]) -> bool:
    """Whether both implementations agree as closely as they must.

    Args:
        found: The comparisons.
    """
    return (
        _share(each.same for each in found) >= _SHARE
        and _share(each.apart <= _NEAR for each in found) >= _SHARE
        and all(each.apart <= _JPEG_NEAR for each in found)
    )


def spread_of(classifier: Classifier, files: Sequence[bytes]) -> tuple[list[int], float]:
    """Classifies files of the same picture with the server's preprocessing.

    Args:
        classifier: The network.
        files: The files.

    Returns:
        The top classes, and the largest difference of a score between two files.
    """
    scores = np.stack([classifier.by_server(data) for data in files])
    best = sorted(set(scores.argmax(axis=1).tolist()))
    return best, float((scores.max(axis=0) - scores.min(axis=0)).max())


def _share(holds: Iterable[bool]) -> float:
    return float(np.mean(list(holds)))


def main() -> int:
    """Compares, prints a table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--verbose", action="store_true", help="list what differs")
    given = parser.parse_args()
    classifier = Classifier(given.models)
    found = [compare(classifier, picture) for picture in corpus()]
    print(f"{'':10}{'images':>7}{'same top-1':>12}{'≤ 0.01':>9}{'≤ 0.05':>9}{'largest':>9}")
    for kind in ("JPEG", "PNG", "WEBP", "all"):
        some = [each for each in found if kind in {each.picture.format, "all"}]
        print(
            f"{kind:10}{len(some):7}{_share(each.same for each in some):12.1%}"
            f"{_share(each.apart <= _NEAR for each in some):9.1%}"
            f"{_share(each.apart <= _JPEG_NEAR for each in some):9.1%}"
            f"{max(each.apart for each in some):9.4f}"
        )
    if given.verbose:
        for each in found:
            if each.apart > _NEAR or not each.same:
                print(f"  {each.picture.name}: {each.apart:.4f}, same top-1: {each.same}")
    best, spread = spread_of(classifier, six_sizes())
    print(
        f"one photograph, shortest side of {', '.join(map(str, _SIZES))} pixels: "
        f"top-1 {', '.join(map(str, best))}; scores at most {spread:.3f} apart"
    )
    enough = agrees(found) and len(best) == 1 and spread <= _SIX_NEAR
    print("they agree" if enough else "they agree less than they must")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
