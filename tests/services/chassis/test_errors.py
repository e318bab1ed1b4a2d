"""The errors, and the statuses that they become."""

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.chassis import errors
from tidegate.chassis.errors import (
    STATUS_CODES,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    to_status,
)
from tidegate.errors import TidegateError

# gRPC rejects some trailers above 8 KiB; a quarter is left to other trailers.
TRAILER_BYTES = 8192 * 3 // 4


def test_every_public_error_has_a_status_code():
    classes = [getattr(errors, name) for name in errors.__all__]
    public = {
        each for each in classes if isinstance(each, type) and issubclass(each, ServiceError)
    } - {ServiceError}
    assert public == set(STATUS_CODES)
    assert all(issubclass(each, TidegateError) for each in public)


def test_subclass_has_the_code_of_its_ancestor():
    class ModelNotFound(NotFound):
        default_reason = "MODEL_UNKNOWN"

    status = to_status(ModelNotFound("no model x"))
    assert status.code == grpc.StatusCode.NOT_FOUND.value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "MODEL_UNKNOWN"


def test_single_violation_is_made_in_one_line():
    error = InvalidArgument.of("image", "must not be empty")
    assert error.violations == (FieldViolation("image", "must not be empty"),)
    assert str(error) == "image: must not be empty"


@pytest.mark.parametrize("reason", ["queue full", "queueFull", "Q", "_QUEUE", "Q" * 64])
def test_malformed_reason_is_rejected(reason):
    with pytest.raises(ValueError, match="UPPER_SNAKE"):
        NotFound("x", reason=reason)


@given(
    message=st.text(max_size=20_000),
    violations=st.lists(
        st.builds(FieldViolation, field=st.text(max_size=2000), description=st.text(max_size=2000)),
        max_size=100,
    ),
)
@example(message="x" * 9999, violations=[FieldViolation("é" * 999, "\ud800" * 999)] * 99)
def test_status_always_fits_a_trailer(message, violations):
    status = to_status(InvalidArgument(violations, message=message))
    percent_encoded = 3 * len(status.message.encode())
    in_base64 = -(-status.ByteSize() // 3) * 4
    assert percent_encoded + in_base64 <= TRAILER_BYTES


@given(seconds=st.floats(min_value=0, max_value=1e6))
def test_retry_delay_is_that_of_the_error(seconds):
    status = to_status(ResourceExhausted("full", retry_after_s=seconds))
    retry = error_details_pb2.RetryInfo()
    assert status.details[-1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() / 1e9 == pytest.approx(seconds, abs=1e-8)
