"""``tidegate classify``: images in, labels out."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tidegate.cli.addresses import ModelService, address_of
from tidegate.cli.console import JsonOption, VisionOption, errors, print_json, results
from tidegate.cli.serving import classify_output as output
from tidegate.cli.serving.images import NamedImage, built_in_image, named_images
from tidegate.cli.serving.outcomes import ImageOutcome
from tidegate.cli.serving.repeats import summarise_repeats
from tidegate.cli.tracing import TraceOption, exported_spans
from tidegate.client import AsyncClient, ClassifyResult, ClientOptions, UnavailableError
from tidegate.errors import TidegateError

__all__ = ["classify"]


@dataclass(frozen=True, slots=True)
class _Question:
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
    """Say what images show.

    An image that fails does not stop the others; the exit status is then 1.
    """
    found = list(named_images(images)) if images else [built_in_image()]
    if not found:
        raise typer.BadParameter(
            f"there are no JPEG, PNG or WebP files in {', '.join(images or ())}"
        )
    question = _Question(model, model_version, top_k, repeat)
    address = address_of(ModelService.VISION, vision)
    options = ClientOptions(timeout_s=timeout_s)
    with exported_spans(trace):
        started = time.perf_counter()
        asking = _all(found, question, address, options, concurrency, as_json=as_json)
        outcomes = asyncio.run(asking)
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


async def _all(
    images: Sequence[NamedImage],
    question: _Question,
    address: str,
    options: ClientOptions,
    concurrency: int,
    *,
    as_json: bool,
) -> list[ImageOutcome]:
    """Asks about every image, tells failures and JSON as they come, and keeps the outcomes."""
    console = errors()
    outcomes = []
    shown = console.is_terminal and len(images) * question.repeat > 1
    with Progress(
        *(TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        console=console,
        disable=not shown,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=len(images) * question.repeat)
        async with (
            AsyncClient(address, options) as client,
            aclosing(_in_order(client, images, question, concurrency)) as stream,
        ):
            async for outcome in stream:
                progress.advance(bar, question.repeat)
                outcomes.append(outcome)
                if isinstance(outcome.error, UnavailableError) and outcome.error.unreachable:
                    # Every other image would fail the same way.
                    raise outcome.error
                if as_json:
                    print_json(output.as_object(outcome))
                elif outcome.error is not None:
                    output.print_failure(console, outcome)
    return outcomes


async def _in_order(
    client: AsyncClient, images: Sequence[NamedImage], question: _Question, concurrency: int
) -> AsyncGenerator[ImageOutcome, None]:
    """The outcomes in the order of the images, so many calls at a time."""
    slots = asyncio.Semaphore(concurrency)
    tasks = [
        asyncio.create_task(_ask(client, image, question, slots), name=image.name)
        for image in images
    ]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(
    client: AsyncClient, image: NamedImage, question: _Question, slots: asyncio.Semaphore
) -> ImageOutcome:
    latencies: list[float] = []

    async def once() -> ClassifyResult | TidegateError:
        async with slots:
            started = time.perf_counter()
            try:
                result = await client.vision.classify(
                    image.content,
                    model=question.model,
                    version=question.version,
                    top_k=question.top_k,
                )
            except TidegateError as error:
                return error
            latencies.append(time.perf_counter() - started)
            return result

    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(once()) for _ in range(question.repeat)]
    answers = [call.result() for call in calls]
    return ImageOutcome(
        image.name,
        results=tuple(answer for answer in answers if isinstance(answer, ClassifyResult)),
        errors=tuple(answer for answer in answers if isinstance(answer, TidegateError)),
        latencies_s=tuple(latencies),
    )
