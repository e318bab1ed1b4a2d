"""Retries: Istio's defaults, and the ``retries`` of a route, which replace them.

By default Envoy retries a request up to two times, if no server can have begun with it, or if the
server answered ``UNAVAILABLE`` or ``CANCELLED`` in its headers. Each retry goes to another endpoint
if there is one.
"""

import http
from typing import Final, TypeAlias

from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from google.protobuf.wrappers_pb2 import UInt32Value

from tidegate.istio.virtual_service import HttpRetry
from tidegate.mesh.compiler.protobuf import duration, packed

__all__ = ["retry_policy"]

_ATTEMPTS: Final = 2
_CONDITIONS: Final = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
_BY_STATUS: Final = "retriable-status-codes"
# How often Envoy chooses again when the chosen endpoint was tried before.
_SELECTION_ATTEMPTS: Final = 5
_STATUSES: Final = frozenset(status.value for status in http.HTTPStatus)

_RetryPolicy: TypeAlias = route_components_pb2.RetryPolicy


def retry_policy(retry: HttpRetry | None, *, hashed: bool) -> _RetryPolicy | None:
    """When and how often Envoy retries a request; None for never.

    Args:
        retry: The ``retries`` of the route; None for Istio's default.
        hashed: Whether a hash chooses the endpoint; then retries stay at this endpoint.
    """
    policy = _RetryPolicy(
        num_retries=UInt32Value(value=_ATTEMPTS),
        retry_on=_CONDITIONS,
        host_selection_retry_max_attempts=_SELECTION_ATTEMPTS,
    )
    avoid_previous = not hashed
    if retry is not None:
        if retry.attempts == 0:
            return None
        policy.num_retries.value = retry.attempts
        if retry.retry_on:
            _conditions(policy, retry.retry_on)
        if retry.per_try_timeout:
            policy.per_try_timeout.CopyFrom(duration(retry.per_try_timeout))
        if retry.backoff:
            policy.retry_back_off.base_interval.CopyFrom(duration(retry.backoff))
        if retry.retry_ignore_previous_hosts is not None:
            avoid_previous = retry.retry_ignore_previous_hosts
        if retry.retry_remote_localities:
            policy.retry_priority.name = "envoy.retry_priorities.previous_priorities"
            policy.retry_priority.typed_config.CopyFrom(
                packed(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=2))
            )
    if avoid_previous:
        policy.retry_host_predicate.add(
            name="envoy.retry_host_predicates.previous_hosts",
            typed_config=packed(previous_hosts_pb2.PreviousHostsPredicate()),
        )
    return policy


def _conditions(policy: _RetryPolicy, retry_on: str) -> None:
    """Splits Istio's list into Envoy's conditions and HTTP statuses."""
    words = [word.strip() for word in retry_on.split(",") if word.strip()]
    statuses = [int(word) for word in words if word.isdigit() and int(word) in _STATUSES]
    conditions = [word for word in words if not (word.isdigit() and int(word) in _STATUSES)]
    if statuses and _BY_STATUS not in conditions:
        conditions.append(_BY_STATUS)
    policy.retry_on = ",".join(conditions)
    policy.retriable_status_codes.extend(statuses)
