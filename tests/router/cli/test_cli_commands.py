"""The command line as a program: its output, and its exit status."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from double_server import double_server, overloaded, refused_field, unavailable

CHILD = Path(__file__).parents[2] / "doubles" / "child_server.py"
PROGRAM = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]


@pytest.fixture
def server():
    with double_server() as double:
        yield double


@pytest.fixture
def tidegate(tmp_path):
    """Runs the command line in an empty folder."""

    def run(*arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None):
        return subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=clean_environment() | (env or {}),
            timeout=60,
            check=False,
        )

    return run


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    # Settings of the environment for colours and width would change the output.
    return {**kept, "TERM": "xterm-256color", "COLUMNS": "100"}


@pytest.fixture
def nowhere():
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{free.getsockname()[1]}"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom tidegate.cli.main import main\nsys.argv = ['tidegate', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'grpc', 'pydantic', 'yaml', 'google.protobuf'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    for command in (b"classify", b"chat", b"models", b"up", b"down", b"status"):
        assert command in done.stdout


def test_commands_that_ask_the_controller_import_none_of_it():
    code = (
        "import sys\nimport tidegate.cli.mesh.shift, tidegate.cli.mesh.status\n"
        "heavy = {'envoy', 'prometheus_client', 'pydantic_settings', 'structlog'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_one_image_is_shown_in_full(tidegate, server, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"jpeg")
    done = tidegate("classify", "cat.jpg", "--vision", server.address, "-k", "2")
    assert done.returncode == 0
    output = done.stdout.decode()
    assert "cat.jpg  double 1 (int8), 2.5 ms in the server" in output
    assert "75.0%  ███████████████       tabby" in output
    assert b"\x1b" not in done.stdout
    assert done.stderr == b""


def test_many_images_are_rows_and_a_bad_image_does_not_stop_the_others(tidegate, server, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/b.JPG", "in/a.png", "in/deep/c.webp", "in/notes.txt"):
        (tmp_path / name).write_bytes(b"jpeg")
    (tmp_path / "in/z.jpeg").write_bytes(b"not an image")
    done = tidegate("classify", "in", "missing.jpg", "--vision", server.address)
    assert done.returncode == 1
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [
        *("IMAGE", "in/a.png", "in/b.JPG", "in/deep/c.webp", "3"),
    ]
    problems = done.stderr.decode().splitlines()
    assert problems[0].startswith("in/z.jpeg: The server refused the request")
    assert problems[1] == "missing.jpg: cannot read missing.jpg: No such file or directory"


def test_json_is_one_object_a_line_in_the_order_of_the_images(tidegate, server, tmp_path):
    for name, content in (("a.jpg", b"jpeg"), ("b.jpg", b"not an image"), ("c.jpg", b"jpeg")):
        (tmp_path / name).write_bytes(content)
    done = tidegate("classify", ".", "--json", "-k", "1", "--vision", server.address)
    assert done.returncode == 1
    first, second, third = (json.loads(line) for line in done.stdout.splitlines())
    assert [first["image"], second["image"], third["image"]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert first["classifications"] == [{"class_id": 281, "label": "tabby", "score": 0.75}]
    assert (second["code"], second["reason"]) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


def test_image_may_come_from_standard_input(tidegate, server):
    done = tidegate("classify", "-", "--json", "--vision", server.address, stdin=b"piped jpeg")
    assert json.loads(done.stdout)["image"] == "-"
    assert server.script.requests[0].images[0].encoded == b"piped jpeg"


def test_repeats_are_counted_and_summed_up(tidegate, server):
    arguments = ("classify", "-", "--repeat", "7", "--concurrency", "3", "--vision", server.address)
    done = tidegate(*arguments, stdin=b"jpeg")
    assert len(server.script.requests) == 7
    header, figures = done.stdout.decode().splitlines()[-3:-1]
    assert header.split()[:4] == ["CALLS", "FAILED", "PER", "SECOND"]
    assert figures.split()[:2] == ["7", "0"]
    assert done.stdout.decode().splitlines()[-5].split()[:4] == ["double", "1", "7", "100.0%"]
    done = tidegate(*arguments, "--json", stdin=b"jpeg")
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["latency"]["count"] == 7
    assert report["versions"] == [{"model": "double", "version": "1", "count": 7, "share": 1.0}]


def test_failed_repeats_are_counted_by_status(tidegate, server):
    server.script.failures.extend([refused_field("images[0]", "is no image")] * 2)
    arguments = ("classify", "--repeat", "5", "--concurrency", "1", "--vision", server.address)
    done = tidegate(*arguments, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["errors"] == {"INVALID_ARGUMENT": 2}
    assert report["latency"]["failed"] == 2
    server.script.failures.extend([refused_field("images[0]", "is no image")] * 2)
    assert b"INVALID_ARGUMENT" in tidegate(*arguments).stdout


def test_without_an_image_the_built_in_photograph_is_sent(tidegate, server):
    assert tidegate("classify", "--vision", server.address).returncode == 0
    (image,) = server.script.requests[0].images
    assert image.encoded.startswith(b"\xff\xd8\xff")


def test_nothing_to_classify_is_a_usage_error(tidegate, tmp_path):
    (tmp_path / "empty").mkdir()
    done = tidegate("classify", "empty")
    assert done.returncode == 2
    assert b"no JPEG, PNG or WebP files in empty" in done.stderr


def test_unreachable_server_has_its_own_status_and_advice(tidegate, nowhere):
    for command in (("classify", "-"), ("chat", "hello")):
        done = tidegate(*command, "--vision" if command[0] == "classify" else "--llm", nowhere)
        assert (done.returncode, done.stdout) == (3, b"")
        error = done.stderr.decode()
        assert error.startswith(f"error: Nothing answers at {nowhere}")
        assert "tidegate up" in error
        assert "Traceback" not in error


def test_refused_call_is_a_sentence(tidegate, server):
    server.script.failures.extend([overloaded(20)] * 9)
    done = tidegate("chat", "hello", "--llm", server.address)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the queue is full [RESOURCE_EXHAUSTED, QUEUE_FULL] Try again in 0.02 s" in done.stderr


def test_chat_writes_the_answer_and_nothing_else(tidegate, server):
    done = tidegate("chat", "What?", "--system", "Be brief.", "--llm", server.address)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Paris.\n", b"")
    roles = [message.content for message in server.script.requests[0].messages]
    assert roles == ["Be brief.", "What?"]


def test_chat_passes_its_options_on(tidegate, server, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    tidegate(
        *("chat", "x", "--llm", server.address, "--max-tokens", "5", "--temperature", "0"),
        *("--seed", "7", "--stop", "A", "--stop", "B", "--json-schema", "schema.json"),
    )
    sampling = server.script.requests[0].options.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (5, 0, 7)
    assert list(sampling.stop) == ["A", "B"]
    assert sampling.constraint.json_schema == '{"type": "object"}'


def test_chat_reads_a_pipe_and_prints_json(tidegate, server):
    done = tidegate("chat", "--json", "--llm", server.address, stdin=b"from a pipe")
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["reason"]) == ("Paris.", "stop")
    assert answer["usage"]["completion_tokens"] == 3
    assert server.script.requests[0].messages[0].content == "from a pipe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chat", "x", "--regex", "a", "--choice", "b"), b"exclude each other"),
        (("chat", "x", "--json-schema", "none.json"), b"cannot read none.json"),
        (("chat",), b"the prompt is empty"),
        (("classify", "x", "--top-k", "0"), b"top-k"),
        (("chta",), b"did you mean 'chat'?"),
        (("xyzzy",), b"There is no command 'xyzzy'"),
    ],
)
def test_wrong_command_line_is_explained(tidegate, arguments, message):
    done = tidegate(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_models_of_both_servers_are_listed(tidegate, server, nowhere):
    done = tidegate("models", "--vision", server.address, "--llm", server.address)
    rows = [line.split()[:4] for line in done.stdout.decode().splitlines()[1:]]
    assert rows == [["vision", "double", "1", "*"], ["llm", "smol", "1", "ready"]]
    done = tidegate("models", "--json", "--vision", server.address, "--llm", nowhere)
    assert (done.returncode, json.loads(done.stdout)["name"]) == (0, "double")
    assert b"Nothing answers" in done.stderr
    assert tidegate("models", "--vision", nowhere, "--llm", nowhere).returncode == 3


def test_address_may_come_from_the_environment(tidegate, server, nowhere):
    env = {"TIDEGATE_LLM_ADDRESS": server.address}
    assert tidegate("chat", "x", env=env).stdout == b"Paris.\n"
    assert tidegate("chat", "x", "--llm", nowhere, env=env).returncode == 3


def test_interrupted_answer_ends_the_call_and_the_program(server, tmp_path):
    never = threading.Event()
    server.script.deltas = ("first", never)
    with subprocess.Popen(
        [*PROGRAM, "chat", "x", "--llm", server.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=clean_environment(),
    ) as process:
        assert process.stdout.read(5) == b"first"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert b"Traceback" not in process.stderr.read()
    assert server.script.cancelled.wait(timeout=10)
    never.set()


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], cwd: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(PROGRAM[0], [*PROGRAM, *arguments], clean_environment())
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + 30
        while text not in self.seen:
            ready, _, _ = select.select([self.descriptor], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not come; this did: {self.seen!r}"
            self.seen += os.read(self.descriptor, 65536)
        self.seen = self.seen.partition(text)[2]

    def send(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def status(self) -> int:
        with contextlib.suppress(OSError):
            while os.read(self.descriptor, 65536):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_conversation_keeps_its_history_and_ctrl_c_stops_only_the_answer(server, tmp_path):
    never = threading.Event()
    terminal = Terminal(["chat", "--llm", server.address], tmp_path)
    terminal.expect(b"> ")
    terminal.send(b"one\n")
    terminal.expect(b"Paris.")
    terminal.expect(b"11 + 3 tokens, first after 50 ms, then 40 tokens/s, complete")
    terminal.expect(b"> ")
    server.script.deltas = ("half", never)
    terminal.send(b"two\n")
    terminal.expect(b"half")
    terminal.send(b"\x03")
    terminal.expect(b"stopped")
    never.set()
    server.script.deltas = ("end",)
    server.script.failures.append(unavailable("no"))
    terminal.expect(b"> ")
    terminal.send(b"three\n")
    terminal.expect(b"end")
    terminal.expect(b"> ")
    terminal.send(b"\x04")
    assert terminal.status() == 0
    said = [message.content for message in server.script.requests[-1].messages]
    assert said == ["one", "Paris.", "two", "half", "three"]


def write_servers(folder: Path, **more: object) -> None:
    server = {
        "kind": "program",
        "command": [sys.executable, str(CHILD)],
        "initial_backoff_s": 0.05,
        **more,
    }
    (folder / "tidegate.yaml").write_text(json.dumps({"servers": {"one": server}}))


def test_up_status_and_down(tidegate, tmp_path):
    write_servers(tmp_path)
    up = tidegate("up", "--detach")
    try:
        assert up.returncode == 0
        assert b"one: serving on 127.0.0.1:" in up.stderr
        again = tidegate("up", "--detach")
        assert again.returncode == 1
        assert b"tidegate is up already here" in again.stderr
        table = tidegate("status")
        assert table.returncode == 0
        assert table.stdout.decode().splitlines()[1].split()[:2] == ["one", "serving"]
        state = json.loads(tidegate("status", "--json").stdout)
        assert state["servers"][0]["phase"] == "serving"
    finally:
        down = tidegate("down")
    assert (down.returncode, down.stderr) == (0, b"stopped one\n")
    assert tidegate("status").returncode == 1
    assert b"nothing runs here" in tidegate("down").stderr


def test_restart_shows_each_stage_and_fails_for_an_unknown_server(tidegate, tmp_path):
    write_servers(tmp_path)
    assert tidegate("up", "--detach").returncode == 0
    try:
        before = json.loads(tidegate("status", "--json").stdout)["servers"][0]["pid"]
        done = tidegate("restart", "one")
        assert done.returncode == 0
        assert done.stderr.decode().splitlines()[-1] == "one: done"
        assert json.loads(tidegate("status", "--json").stdout)["servers"][0]["pid"] != before
        done = tidegate("restart", "two")
        assert done.returncode == 1
        assert b"two: failed: there is no such server; there are one" in done.stderr
    finally:
        tidegate("down")
    assert b"nothing runs here" in tidegate("restart", "one").stderr


def test_up_shows_the_last_log_message_of_a_failed_server(tidegate, tmp_path):
    write_servers(tmp_path, settings={"manner": "dies"}, crash_limit=2)
    done = tidegate("up")
    assert done.returncode == 1
    assert (
        b"one: failed; it exited with status 3: no model at models/none "
        b"(log: .tidegate/logs/one.log)"
    ) in done.stderr


def test_up_in_a_terminal_ends_with_ctrl_c(tmp_path):
    write_servers(tmp_path)
    terminal = Terminal(["up"], tmp_path)
    terminal.expect(b"serving")
    terminal.send(b"\x03")
    terminal.expect(b"all servers have stopped")
    assert terminal.status() == 0


def test_wrong_file_is_an_error_without_a_traceback(tidegate, tmp_path):
    (tmp_path / "tidegate.yaml").write_text("servers: {a: {kind: vision, prot: 1}}")
    done = tidegate("up")
    assert done.returncode == 1
    assert b"error: " in done.stderr
    assert b"tidegate.yaml: servers.a.prot: unknown key" in done.stderr


@pytest.mark.parametrize(
    ("command", "missing", "advice"),
    [
        ("up", "yaml", b"pip install 'tidegate[local]'"),
        ("shift", "re2", b"pip install 'tidegate[local]'"),
        ("classify", "grpc", b"pip install 'tidegate'"),
    ],
)
def test_missing_extra_is_named(tidegate, tmp_path, command, missing, advice):
    # An interpreter in which the module is not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    assert command.encode() in tidegate("--help", env=env).stdout
    done = tidegate(command, "--help", env=env)
    assert done.returncode == 1
    assert advice in done.stderr
    assert b"Traceback" not in done.stderr
