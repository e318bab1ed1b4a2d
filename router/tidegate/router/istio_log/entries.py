"""Access log entries of Envoys that istiod configured, as records of requests.

Istio's provider ``envoyHttpAls`` sends no custom tags, so `parse_entry` takes what the entry itself
has. This module adds what is particular to Istio:

- **Two logs of one request.** The caller's proxy and the server's proxy both log it. Only the
  caller's entry counts. The server's entry counts if its caller has no proxy: Envoy puts
  ``x-envoy-attempt-count`` on every request that it forwards, and a caller without a proxy does
  not. It also counts for a mirrored copy, which is in no log of the caller. istiod lets Envoy end
  the authority of a copy with ``-shadow`` only with ``DISABLE_SHADOW_HOST_SUFFIX=false``, its
  default before 1.28. Otherwise a request counts as a copy if `HostFacts.shadows` has the version.
- **Requests without a cluster**: see `tidegate.router.istio_log.attribution`. One that arrived at
  the Pod's own address was refused there by its proxy, so it counts for the Pod's version.
- **Timeouts of a VirtualService.** Envoy writes them over ``grpc-timeout``. They are told from the
  deadline of a caller only where `HostFacts.timeouts_s` has them.

Nobody knows whether a route of Istio has conditions on headers, so `by_headers` is false. Routes
for testers are known by their names.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Final

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType, HTTPAccessLogEntry

from tidegate.mesh.telemetry import EntryParser, PassedOver, RequestRecord
from tidegate.mesh.telemetry.request_record import MIRROR_SUFFIX, grpc_timeout_s, parse_entry
from tidegate.router.istio_log.attribution import Attribution
from tidegate.router.istio_log.senders import Sender, read_sender

__all__ = ["ATTEMPT_HEADER", "istio_parser"]

ATTEMPT_HEADER: Final = "x-envoy-attempt-count"
"""The request header that an Envoy puts on each request that it forwards."""

_INBOUND: Final = "inbound|"
# Names of Istio that stand for no host.
_NO_HOSTS: Final = frozenset(
    {"BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster"}
)


def istio_parser(
    attribution: Attribution,
    user_cookies: Collection[str] = (),
    on_sender: Callable[[Sender], None] = lambda _: None,
) -> Callable[[Node], EntryParser]:
    """Returns what gives the parser for an Envoy of Istio, by its node.

    Args:
        attribution: Which host requests are for; the parser adds what it sees.
        user_cookies: Names of the cookies that name a user.
        on_sender: Called with each Envoy that begins to send.
    """
    cookies = frozenset(user_cookies)

    def parser_of(node: Node) -> EntryParser:
        sender = read_sender(node)
        on_sender(sender)

        def parse(entry: HTTPAccessLogEntry) -> RequestRecord | PassedOver:
            return _record(entry, sender, attribution, cookies)

        return parse

    return parser_of


def _record(
    entry: HTTPAccessLogEntry, sender: Sender, attribution: Attribution, cookies: frozenset[str]
) -> RequestRecord | PassedOver:
    if entry.common_properties.access_log_type == AccessLogType.UpstreamEnd:
        # Only an upstream log that somebody else configured has such entries.
        return PassedOver.INTERMEDIATE
    record = parse_entry(entry, sender.id, sender.kind, cookies)
    if record is None:
        return PassedOver.INTERMEDIATE
    if record.cluster.startswith(_INBOUND) or _is_refused_by_own_proxy(entry, record, sender):
        return _of_server(record, sender, attribution)
    if ATTEMPT_HEADER in record.headers:
        record = dataclasses.replace(record, headers=_of_caller(record.headers))
    if record.cluster and record.host not in _NO_HOSTS:
        attribution.learn(record.authority, record.route, record.host)
    else:
        host = attribution.host_of(record.authority, record.route, sender)
        record = dataclasses.replace(record, host=host, subset="", port=None)
    return _with_timeout(record, attribution)


def _is_refused_by_own_proxy(
    entry: HTTPAccessLogEntry, record: RequestRecord, sender: Sender
) -> bool:
    """Whether a server's proxy answered a request itself, such as by a policy: no cluster got it.

    The request came to the address of the Pod. A request of the Pod itself goes to another one.
    """
    if record.cluster or sender.kind != "sidecar" or not sender.address:
        return False
    arrived_at: str = entry.common_properties.downstream_local_address.socket_address.address
    return arrived_at == sender.address


def _of_server(
    record: RequestRecord, sender: Sender, attribution: Attribution
) -> RequestRecord | PassedOver:
    authority = MIRROR_SUFFIX.sub(r"\1", record.authority)
    mirrored = authority != record.authority
    was_forwarded = ATTEMPT_HEADER in record.headers
    if was_forwarded and not mirrored and not attribution.has_shadows:
        return PassedOver.DUPLICATE
    host = attribution.host_of_server(authority, sender)
    version = attribution.version_of(host, sender)
    if was_forwarded and not mirrored:
        if not attribution.is_shadow(host, version):
            return PassedOver.DUPLICATE
        mirrored = True
    code = record.grpc_status
    if mirrored and code is grpc.StatusCode.UNKNOWN and not record.response_flags:
        code = grpc.StatusCode.CANCELLED
    return dataclasses.replace(
        record,
        authority=authority,
        headers=_of_caller(record.headers),
        host=host,
        subset=version,
        route="",
        grpc_status=code,
        mirrored=mirrored,
        server_side=True,
    )


def _of_caller(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers without the one of the caller's proxy."""
    return {name: value for name, value in headers.items() if name != ATTEMPT_HEADER}


def _with_timeout(record: RequestRecord, attribution: Attribution) -> RequestRecord:
    """Gives a timeout of the host's routes back to the proxy."""
    if record.grpc_status is not grpc.StatusCode.DEADLINE_EXCEEDED or record.proxy_timeout:
        return record
    timeout_s = grpc_timeout_s(record.headers)
    if timeout_s is None or not attribution.has_timeout(record.host, timeout_s):
        return record
    return dataclasses.replace(record, proxy_timeout=True)
