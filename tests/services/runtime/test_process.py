"""Batch scheduling where it is forbidden; the tests of the servers test it where it works."""

import os

from structlog.testing import capture_logs

from tidegate.runtime.process import schedule_in_batches


def test_forbidden_batch_scheduling_is_logged_and_nothing_fails(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with capture_logs() as logs:
        schedule_in_batches()
    assert [(each["log_level"], each["event"]) for each in logs] == [
        ("warning", "batch_scheduling has no effect here")
    ]
