"""Changes of headers: Istio's ``headers`` as Envoy's lists, for a route or one of its destinations.

The authority is no header to Envoy; where it is set like one, the request is sent with it.
"""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2

from tidegate.istio.virtual_service import HeaderOperations, Headers

__all__ = ["authority_of", "change_headers"]

_AUTHORITY: Final = (":authority", "host")

_Option: TypeAlias = base_pb2.HeaderValueOption


def change_headers(
    where: route_components_pb2.Route | route_components_pb2.WeightedCluster.ClusterWeight,
    headers: Headers,
) -> None:
    """Adds changes of headers to those of a route or a weighted destination."""
    where.request_headers_to_add.extend(_added(headers.request))
    where.request_headers_to_remove.extend(_removed(headers.request))
    where.response_headers_to_add.extend(_added(headers.response))
    where.response_headers_to_remove.extend(_removed(headers.response))


def authority_of(headers: Headers) -> str | None:
    """The authority that requests are sent with, if they set one."""
    for changes in (headers.request.set, headers.request.add):
        for name, value in changes.items():
            if name.lower() in _AUTHORITY:
                return value
    return None


def _added(operations: HeaderOperations) -> Iterable[_Option]:
    yield from _options(operations.set, _Option.OVERWRITE_IF_EXISTS_OR_ADD)
    yield from _options(operations.add, _Option.APPEND_IF_EXISTS_OR_ADD)


def _options(values: Mapping[str, str], action: int) -> Iterable[_Option]:
    for name, value in sorted(values.items()):
        if not _internal(name):
            yield _Option(header=base_pb2.HeaderValue(key=name, value=value), append_action=action)


def _removed(operations: HeaderOperations) -> Iterable[str]:
    return (name for name in operations.remove if not _internal(name))


def _internal(name: str) -> bool:
    return name.startswith(":") or name.lower() == "host"
