"""Checks of answers that no description can express; Schemathesis loads them as its hooks."""

import json

import schemathesis

_MAX_ERROR_BYTES = 8192


@schemathesis.check
def event_streams_are_whole(ctx, response, case):
    """A stream ends with ``[DONE]``, has no error, and tells how each of its answers ended."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    assert not response.stream_cut_short
    *lines, last = [
        line.removeprefix("data: ")
        for line in response.content.decode().split("\n")
        if line.startswith("data: ")
    ]
    assert last == "[DONE]", f"the stream ends with {last}"
    events = [json.loads(line) for line in lines]
    assert not [each for each in events if each.get("error")]
    if case.operation.path == "/v1/responses":
        numbers = [each["sequence_number"] for each in events]
        assert numbers == list(range(len(events))), f"the events have the numbers {numbers}"
        assert events[0]["type"] == "response.created"
        assert events[-1]["type"] == "response.completed"
        return
    choices = [choice for each in events for choice in each["choices"]]
    ended = sorted(choice["index"] for choice in choices if choice["finish_reason"])
    answers = {choice["index"] for choice in choices}
    assert ended == list(range(len(answers))), f"{len(answers)} answers, of which ended {ended}"


@schemathesis.check
def errors_are_short_and_name_the_request(ctx, response, case):
    """No answer lacks its request's id, and no error grows with the request."""
    assert response.headers.get("x-request-id"), "there is no x-request-id"
    if response.status_code >= 400:
        size = len(response.content)
        assert size <= _MAX_ERROR_BYTES, f"the error has {size} bytes"
