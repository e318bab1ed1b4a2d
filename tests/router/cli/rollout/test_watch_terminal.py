"""``tidegate rollout watch`` on a real terminal: a screen that stays, until Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from router_harness import manual

PROGRAM = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class _Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments, env):
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env
        )
        os.close(theirs)
        self.text = ""

    def until(self, words, timeout_s=30):
        """Reads until the words have come."""
        deadline = time.monotonic() + timeout_s
        while words not in ESCAPES.sub("", self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._own], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._own, 65536).decode(errors="replace")
                except OSError:
                    # The program has ended and closed its terminal.
                    pytest.fail(self.text)

    def interrupt(self):
        """Presses Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        self.until("interrupted: the router goes on")
        return self.process.wait(20)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def terminal(server):
    opened = []

    def run(*arguments):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "NO_COLOR"))}
        env = kept | {
            "TERM": "xterm-256color",
            "COLUMNS": "140",
            "LINES": "50",
            "TIDEGATE_ROUTER_ADDRESS": server.address,
        }
        opened.append(_Terminal(*arguments, env=env))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def test_the_screen_follows_the_rollout_until_ctrl_c(server, tidegate, write, terminal):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    watching = terminal("rollout", "watch", "vision")
    watching.until("stage 1 of 2: v2 10%, v1 90%, until somebody approves it")
    tidegate("rollout", "promote", "vision", "--reason", "looks good")
    watching.until("stage 2 of 2: v2 50%, v1 50%, until somebody approves it")
    watching.until("approved by a user: looks good")
    assert watching.interrupt() == 130


def test_a_wait_shows_the_screen_and_says_how_it_ended(server, write, terminal, tmp_path):
    path = write(manual(weights=(10,)))
    waiting = terminal("rollout", "apply", "-f", str(path), "--wait")
    waiting.until("waits until somebody promotes it")
    server.until_reason("WaitingForApproval")
    other = terminal("rollout", "promote", "vision")
    waiting.until("is promoted: v2 gets all traffic: approved by a user")
    assert waiting.process.wait(20) == 0
    assert other.process.wait(20) == 0


def test_all_rollouts_can_be_watched_at_once(server, tidegate, write, terminal):
    tidegate("rollout", "apply", "-f", write(manual()))
    tidegate("rollout", "apply", "-f", write(manual("llm", "llm"), "llm.yaml"))
    watching = terminal("rollout", "watch")
    watching.until("models/vision is progressing")
    watching.until("models/llm is progressing")
    assert "StageEntered" not in watching.text
    tidegate("rollout", "pause", "llm", "--reason", "lunch")
    watching.until("models/llm  Paused")
    assert watching.interrupt() == 130
