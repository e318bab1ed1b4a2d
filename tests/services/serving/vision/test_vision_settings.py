"""Settings of the vision server, and which are refused."""

import pytest
from pydantic import ValidationError

from tidegate.serving.vision.settings import VisionSettings


@pytest.mark.parametrize("sizes", [[], [0], [2, 1], [1, 1], [1, 2048]])
def test_batch_sizes_are_different_and_ascending(sizes):
    with pytest.raises(ValidationError, match="batch_sizes"):
        VisionSettings(batch_sizes=sizes)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"queue_images": 8}, "queue_images must be at least max_images_per_request"),
        ({"queue_mib": 63}, "queue_mib must be at least max_message_bytes"),
    ],
)
def test_a_queue_smaller_than_the_largest_request_is_refused(values, says):
    with pytest.raises(ValidationError, match=says):
        VisionSettings(**values)


def test_a_small_queue_is_allowed_with_small_requests():
    settings = VisionSettings(queue_images=8, max_images_per_request=8)
    assert (settings.queue_images, settings.max_images_per_request) == (8, 8)


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("TIDEGATE_BATCH_SIZES", "1,8")
    monkeypatch.setenv("TIDEGATE_LOAD", "net/1")
    settings = VisionSettings()
    assert (settings.batch_sizes, settings.load) == ([1, 8], ["net/1"])
