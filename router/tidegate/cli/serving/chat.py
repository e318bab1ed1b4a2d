"""``tidegate chat``: one question from the command line, or a conversation."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Annotated, TypeAlias

import typer

from tidegate.cli.addresses import LlmOption, ModelService, address_of
from tidegate.cli.console import JsonOption, errors, print_json, readable
from tidegate.cli.tracing import TraceOption, exported_spans
from tidegate.client import (
    Client,
    ClientOptions,
    Delta,
    Finish,
    GenerateOptions,
    GenerationStream,
    Message,
    Role,
    TidegateRpcError,
)

__all__ = ["chat"]

_SIGNAL_CHECK_INTERVAL_S = 0.1

# How long the thread that reads an answer may take to end once its call is cancelled.
_READER_END_S = 1.0

# The deltas of an answer, its error, and ``None`` for its end.
_Events: TypeAlias = "SimpleQueue[Delta | BaseException | None]"


def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The question. Without it: a conversation on a terminal, else standard input.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions to the model.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer.", show_default="the context's rest")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0, max=2, help="0 always takes the likeliest token.", show_default="the model's"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed gives the same answer, unless other requests run beside it.",
            show_default=False,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text that ends the answer; may be repeated.", show_default=False),
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(help="File with a JSON Schema that the answer obeys.", show_default=False),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(help="Regular expression that the answer matches.", show_default=False),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="An allowed answer; may be repeated.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model.", show_default="the server's")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Deadline of an answer.")] = 600.0,
    as_json: JsonOption = False,
    llm: LlmOption = None,
    trace: TraceOption = None,
) -> None:
    """Talk to a language model.

    In a conversation, Ctrl-C stops an answer and Ctrl-D ends the conversation.
    """
    if sum(form is not None for form in (json_schema, regex, choice or None)) > 1:
        raise typer.BadParameter("--json-schema, --regex and --choice exclude each other")
    options: GenerateOptions = {}
    if model is not None:
        options["model"] = model
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    if stop:
        options["stop"] = stop
    if json_schema is not None:
        options["json_schema"] = readable(json_schema)
    if regex is not None:
        options["regex"] = regex
    if choice:
        options["choice"] = choice
    history = [] if system is None else [Message(Role.SYSTEM, system)]
    client_options = ClientOptions(stream_timeout_s=timeout_s)
    with (
        exported_spans(trace),
        Client(address_of(ModelService.LLM, llm), client_options) as client,
    ):
        if prompt is None and sys.stdin.isatty():
            _converse(client, history, options, as_json=as_json)
            return
        question = sys.stdin.read() if prompt in (None, "-") else prompt
        if not question or not question.strip():
            raise typer.BadParameter("the prompt is empty; pass it, or pipe it in")
        history.append(Message(Role.USER, question))
        _answer(partial(client.llm.chat, history, **options), [], as_json=as_json)


def _converse(
    client: Client, history: list[Message], options: GenerateOptions, *, as_json: bool
) -> None:
    """Takes turns until the user ends the conversation."""
    # The import gives input() its line editing and history.
    import readline  # noqa: F401

    console = errors()
    console.print("Ctrl-C stops an answer, Ctrl-D ends the conversation.", style="dim")
    while True:
        try:
            question = input("> ")
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if not question.strip():
            continue
        asked = Message(Role.USER, question)
        answer: list[str] = []
        try:
            ask = partial(client.llm.chat, [*history, asked], **options)
            _answer(ask, answer, as_json=as_json)
        except KeyboardInterrupt:
            console.print("\nstopped", style="dim")
        except TidegateRpcError as error:
            # The failed question is not kept in the history.
            console.print(str(error), style="red")
            continue
        history += [asked, Message(Role.ASSISTANT, "".join(answer))]


def _answer(ask: Callable[[], GenerationStream], answer: list[str], *, as_json: bool) -> None:
    """Writes an answer as it comes, and its statistics to standard error.

    Args:
        ask: Starts the answer.
        answer: Receives the text as it comes, even if the answer is interrupted or fails.
        as_json: Whether to write the whole answer as JSON instead.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C.
        TidegateRpcError: The call failed.
    """
    events: _Events = SimpleQueue()
    with _ctrl_c_held() as ctrl_c, _reading(ask(), events) as stream:
        while (event := _next(events, ctrl_c)) is not None:
            if isinstance(event, BaseException):
                raise event
            answer.append(event.text)
            if not as_json:
                with ctrl_c.raised():
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
        whole = stream.read() if as_json else None
    if whole is not None:
        print_json({"text": whole.text, **asdict(whole.finish)})
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    if stream.finish is not None and sys.stderr.isatty():
        errors().print(_statistics(stream.finish), style="dim")


@contextmanager
def _reading(stream: GenerationStream, events: _Events) -> Iterator[GenerationStream]:
    """Reads a stream in a thread that ends with the block; leaving early cancels the call."""
    reader = Thread(target=_read, args=(stream, events), daemon=True)
    reader.start()
    try:
        with stream:
            yield stream
    finally:
        # The channel must not close while the thread is in gRPC.
        reader.join(_READER_END_S)


def _read(stream: GenerationStream, events: _Events) -> None:
    """Reads a stream into a queue."""
    try:
        for delta in stream:
            events.put(delta)
    except BaseException as error:  # noqa: BLE001 - the main thread raises it
        events.put(error)
    finally:
        events.put(None)


class _CtrlC:
    """Ctrl-C while an answer comes: remembered at first, and raised where that is safe."""

    def __init__(self) -> None:
        self._pressed = False
        self._raises = False

    def handle(self, *_: object) -> None:
        """Handles SIGINT."""
        self._pressed = True
        if self._raises:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises Ctrl-C at once: in a block that may wait and does not enter gRPC."""
        self._raises = True
        try:
            self.check()
            yield
        finally:
            self._raises = False


def _next(events: _Events, ctrl_c: _CtrlC) -> Delta | BaseException | None:
    """Waits for the next event, with breaks in which Python runs signal handlers."""
    while True:
        ctrl_c.check()
        with suppress(Empty):
            return events.get(timeout=_SIGNAL_CHECK_INTERVAL_S)


@contextmanager
def _ctrl_c_held() -> Iterator[_CtrlC]:
    """Keeps Ctrl-C from being raised wherever the main thread happens to be.

    Raised inside gRPC, KeyboardInterrupt can leave one of gRPC's locks taken: Python may raise it
    between ``Condition.__enter__`` and the ``with`` block. The channel then delivers no more
    events, and the next answer never comes.
    """
    ctrl_c = _CtrlC()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # Shells start background programs with SIGINT ignored.
        yield ctrl_c
        return
    signal.signal(signal.SIGINT, ctrl_c.handle)
    try:
        yield ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)


def _statistics(finish: Finish) -> str:
    usage, timings = finish.usage, finish.timings
    parts = [
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        f"first after {timings.time_to_first_token_s * 1000:.0f} ms",
    ]
    if timings.mean_inter_token_s:
        parts.append(f"then {1 / timings.mean_inter_token_s:.0f} tokens/s")
    parts.append({"stop": "complete", "length": "cut at its limit"}.get(finish.reason, "aborted"))
    return ", ".join(parts)
