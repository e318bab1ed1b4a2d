"""The end of the processes of vLLM's engine."""

import atexit
import gc
import multiprocessing

import pytest

from tidegate.serving.llm.engine_process.plugin import ENDS_WITH_SERVER, prepare_to_end


def _end(told):
    # Functions registered first are called last.
    atexit.register(lambda: told.send(gc.get_freeze_count() > 0))
    prepare_to_end()
    prepare_to_end()


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_process_of_our_engine_skips_garbage_collection_at_exit(monkeypatch, is_ours):
    monkeypatch.delenv(ENDS_WITH_SERVER, raising=False)
    if is_ours:
        monkeypatch.setenv(ENDS_WITH_SERVER, "1")
    spawning = multiprocessing.get_context("spawn")
    hears, told = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_end, args=(told,))
    process.start()
    assert hears.poll(60)
    assert hears.recv() is is_ours
    process.join(60)
    assert process.exitcode == 0


def test_the_server_itself_is_not_changed(monkeypatch):
    monkeypatch.setenv(ENDS_WITH_SERVER, "1")
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    prepare_to_end()
    assert registered == []
