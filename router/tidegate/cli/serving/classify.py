"""``tidegate classify``: finds the images, sends them to the server, and shows the labels."""

import asyncio
import importlib.resources
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tidegate.cli.addresses import ModelService, VisionOption, address_of
from tidegate.cli.console import JsonOption, errors, print_json, results
from tidegate.cli.serving import classify_output as output
from tidegate.cli.serving.classify_results import ImageOutcome, summarise_repeats
from tidegate.cli.tracing import TraceOption, exported_spans
from tidegate.client import AsyncClient, ClassifyResult, ClientOptions, UnavailableError
from tidegate.errors import TidegateError

__all__ = ["classify"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_STDIN = "-"


@dataclass(frozen=True, slots=True)
class _NamedImage:
    """An image and its name in the output.

    Attributes:
        name: The path, or ``-``.
        content: The bytes, or the path, which is read when the image is sent.
    """

    name: str
    content: bytes | Path


@dataclass(frozen=True, slots=True)
class _Query:
    model: str
    version: str
    top_k: int
    repeat: int


def classify(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="JPEG, PNG or WebP files, folders to search for them, or - for standard input.",
            show_default="a built-in photograph",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Model.", show_default="the server's")] = "",
    model_version: Annotated[
        str, typer.Option(help="Its version.", show_default="the server's")
    ] = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Labels for an image.")] = 5,
    repeat: Annotated[
        int,
        typer.Option(
            min=1, help="Classify each image so often; report versions, errors and latencies."
        ),
    ] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Calls at a time.")] = 4,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Deadline of a call.")] = 30.0,
    as_json: JsonOption = False,
    vision: VisionOption = None,
    trace: TraceOption = None,
) -> None:
    """Label images.

    An image that fails does not stop the others; the exit status is then 1.
    """
    found = list(_named_images(images)) if images else [_built_in_image()]
    if not found:
        raise typer.BadParameter(
            f"there are no JPEG, PNG or WebP files in {', '.join(images or ())}"
        )
    query = _Query(model, model_version, top_k, repeat)
    address = address_of(ModelService.VISION, vision)
    options = ClientOptions(timeout_s=timeout_s)
    with exported_spans(trace):
        started = time.perf_counter()
        calls = _send_all(found, query, address, options, concurrency, as_json=as_json)
        outcomes = asyncio.run(calls)
        seconds = time.perf_counter() - started
    if not as_json:
        output.print_results(results(), outcomes)
    if repeat > 1:
        report = summarise_repeats(outcomes, seconds)
        if as_json:
            print_json(report.as_object())
        else:
            output.print_repeats(results(), report, concurrency)
    if any(outcome.errors for outcome in outcomes):
        raise typer.Exit(1)


async def _send_all(
    images: Sequence[_NamedImage],
    query: _Query,
    address: str,
    options: ClientOptions,
    concurrency: int,
    *,
    as_json: bool,
) -> list[ImageOutcome]:
    """Sends every image, prints errors and JSON as they come, and returns the outcomes."""
    console = errors()
    outcomes = []
    shown = console.is_terminal and len(images) * query.repeat > 1
    with Progress(
        *(TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        console=console,
        disable=not shown,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=len(images) * query.repeat)
        async with (
            AsyncClient(address, options) as client,
            aclosing(_in_order(client, images, query, concurrency)) as stream,
        ):
            async for outcome in stream:
                progress.advance(bar, query.repeat)
                outcomes.append(outcome)
                if isinstance(outcome.error, UnavailableError) and outcome.error.unreachable:
                    # Every other image would fail in the same way.
                    raise outcome.error
                if as_json:
                    print_json(output.as_object(outcome))
                elif outcome.error is not None:
                    output.print_failure(console, outcome)
    return outcomes


async def _in_order(
    client: AsyncClient, images: Sequence[_NamedImage], query: _Query, concurrency: int
) -> AsyncGenerator[ImageOutcome, None]:
    """Yields the outcomes in the order of the images, with a limit on concurrent calls."""
    slots = asyncio.Semaphore(concurrency)
    tasks = [
        asyncio.create_task(_send(client, image, query, slots), name=image.name) for image in images
    ]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(
    client: AsyncClient, image: _NamedImage, query: _Query, slots: asyncio.Semaphore
) -> ImageOutcome:
    latencies: list[float] = []

    async def once() -> ClassifyResult | TidegateError:
        async with slots:
            started = time.perf_counter()
            try:
                result = await client.vision.classify(
                    image.content,
                    model=query.model,
                    version=query.version,
                    top_k=query.top_k,
                )
            except TidegateError as error:
                return error
            latencies.append(time.perf_counter() - started)
            return result

    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(once()) for _ in range(query.repeat)]
    answers = [call.result() for call in calls]
    return ImageOutcome(
        image.name,
        results=tuple(answer for answer in answers if isinstance(answer, ClassifyResult)),
        errors=tuple(answer for answer in answers if isinstance(answer, TidegateError)),
        latencies_s=tuple(latencies),
    )


def _named_images(paths: Iterable[str]) -> Iterator[_NamedImage]:
    """Finds the images that the arguments name, in a stable order; folders recursively.

    A path that does not exist is kept: it fails when the image is sent, after the images before it.
    """
    for path in paths:
        if path == _STDIN:
            yield _NamedImage(_STDIN, sys.stdin.buffer.read())
            continue
        place = Path(path)
        if not place.is_dir():
            yield _NamedImage(path, place)
            continue
        for file in sorted(place.rglob("*")):
            if file.suffix.lower() in _SUFFIXES and file.is_file():
                yield _NamedImage(str(file), file)


def _built_in_image() -> _NamedImage:
    """A photograph to try a server with: the cat Chelsea, by Stéfan van der Walt (CC0)."""
    file = importlib.resources.files("tidegate.cli.serving") / "cat.jpg"
    return _NamedImage("a cat", file.read_bytes())
