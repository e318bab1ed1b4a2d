"""Ctrl-C during an answer of `tidegate chat`, whatever the main thread does at that moment."""

import signal
import threading

import pytest
from double_server import double_server

from tidegate.cli.serving.chat import _answer
from tidegate.client import Client


@pytest.fixture(autouse=True)
def ctrl_c_raises():
    """Shells start programs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_inside_grpc_ends_the_answer_and_leaves_the_channel_usable(capsys):
    never = threading.Event()
    with double_server() as server, Client(server.address) as client:
        server.script.deltas = ("half", never)

        def ask():
            stream = client.llm.chat("one")
            assert next(stream).text == "half"
            # Python would raise KeyboardInterrupt here, which may be inside a lock of gRPC.
            signal.raise_signal(signal.SIGINT)
            return stream

        with pytest.raises(KeyboardInterrupt):
            _answer(ask, [], as_json=False)
        assert server.script.cancelled.wait(timeout=10)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        never.set()
        server.script.deltas = ("whole",)
        answer: list[str] = []
        _answer(lambda: client.llm.chat("two"), answer, as_json=False)
        assert "".join(answer) == "whole"
    assert capsys.readouterr().out.endswith("whole\n")


def test_ctrl_c_ends_an_answer_whose_output_is_blocked(monkeypatch):
    class BlockedOutput:
        def write(self, text):
            # As a full pipe: the write goes on until a signal handler raises.
            signal.raise_signal(signal.SIGINT)
            pytest.fail("Ctrl-C did not end the write")

        def flush(self):
            """Nothing is buffered."""

    monkeypatch.setattr("sys.stdout", BlockedOutput())
    with double_server() as server, Client(server.address) as client:
        server.script.deltas = ("half", threading.Event())
        with pytest.raises(KeyboardInterrupt):
            _answer(lambda: client.llm.chat("one"), [], as_json=False)
        assert server.script.cancelled.wait(timeout=10)


def test_any_error_of_the_stream_ends_the_command(capsys):
    class FaultyStream:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            """Nothing is open."""

        def __iter__(self):
            raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        _answer(FaultyStream, [], as_json=False)
