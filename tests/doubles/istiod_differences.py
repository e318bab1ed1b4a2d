"""The differences between istiod's resources and the compiler's that stay, each with its name.

`docs/istiod-differences.md` gives the reason of each under the same name. A difference that none of
these explains is a fault, of the compiler or of this list.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from xds_normal_form import Difference

ROUTER, CLIENT = "router", "client"


@dataclass(frozen=True)
class Decision:
    """A kind of difference that stays.

    Attributes:
        name: Its name in the documentation.
        pattern: The proxy, the type of the resource, and the path of the leaf.
        holds: Whether a difference with such a path is of this kind.
    """

    name: str
    pattern: str
    holds: Callable[[Difference], bool] = lambda _: True

    def explains(self, difference):
        """Whether a difference is of this kind."""
        place = f"{difference.proxy} {difference.type} {difference.path}"
        return re.fullmatch(self.pattern, place) is not None and self.holds(difference)


def decision_about(difference):
    """The name of the decision that explains a difference; None for a fault."""
    return next((each.name for each in DECISIONS if each.explains(difference)), None)


def _only_istiod(difference):
    return difference.ours is None


def _only_ours(difference):
    return difference.istiod is None


def _of_dns(difference):
    return "EDS" in (difference.istiod, difference.ours) or "dns" in difference.name


def _is_alias(name):
    """Whether the domain of a route is another name of its host: a part of it, or with a dot."""
    table, _, domain = name.partition(" ")
    host = table.rpartition("|")[2]
    shorter = domain.partition(":")[0]
    return shorter != host and (shorter == f"{host}." or host.startswith(f"{shorter}."))


_MANAGER = r"router listener filter_chains\[\d+\]\.filters\[0\]\.typed_config"
_ROUTE = r"route routes\[\d+\]"

DECISIONS = (
    Decision(
        "workload-names",
        r".*filter_metadata\.istio\.workload",
        lambda each: isinstance(each.istiod, str) and isinstance(each.ours, str),
    ),
    Decision("endpoint-labels", r".*filter_metadata\.envoy\.lb(\..*)?", _only_ours),
    Decision("endpoint-twice", r".* endpoint endpoints\..*'\..*", _only_istiod),
    Decision(
        "dns-resolution",
        r"router cluster (dns_(jitter|lookup_family|refresh_rate)|typed_dns_resolver_config\..*)",
    ),
    Decision(
        "dns-subsets",
        r"router cluster ",
        lambda each: _only_ours(each) and re.match(r"outbound\|\d+\|[^|]+\|", each.name),
    ),
    Decision(
        "subject-alt-names",
        r".*\.validation_context\.match_(typed_)?subject_alt_names\[\d+\]\..*",
    ),
    Decision(
        "streams-of-a-connection",
        r"router cluster .*\.http2_protocol_options\.max_concurrent_streams",
        lambda each: _only_ours(each) and each.ours == 2**30,
    ),
    Decision(
        "keepalive-in-seconds",
        r"router cluster upstream_connection_options\.tcp_keepalive\..*",
        lambda each: isinstance(each.istiod, int) and abs(each.istiod - each.ours) == 1,
    ),
    Decision(
        "timeouts",
        rf"router {_ROUTE}\.route\.(max_grpc_timeout|max_stream_duration\.max_stream_duration)",
    ),
    Decision(
        "deadline-header",
        rf"router {_ROUTE}\.request_headers_to_add\[\d+\]\..*"
        rf"|{_MANAGER}\.early_header_mutation_extensions\[0\]\..*"
        r"|router route request_headers_to_remove\[\d+\]",
        _only_ours,
    ),
    Decision(
        "mirrored-header",
        rf"router {_ROUTE}\.route\.request_mirror_policies\[\d+\]\.request_headers_mutations\[0\]"
        r"\..*",
        _only_ours,
    ),
    Decision("scopes", rf"{_MANAGER}\.(rds|scoped_routes)\..*|router route vhds\..*"),
    Decision("server-name", rf"{_MANAGER}\.server_name", _only_istiod),
    Decision(
        "accepting-connections",
        r"router listener (max_connections_to_accept_per_socket_event"
        r"|listener_filters\[0\]\.typed_config\.initial_read_buffer_size)",
        _only_istiod,
    ),
    Decision(
        "gateway-without-routes",
        r"router route (include_request_attempt_count)?",
        lambda each: each.name.endswith(" *"),
    ),
    Decision(
        "redirect-of-a-namespace",
        r"router route ",
        lambda each: _only_istiod(each) and "/" in each.name,
    ),
    Decision(
        "shared-hash-policy",
        rf".* {_ROUTE}\.route\.hash_policy\[\d+\]\..*",
        _only_istiod,
    ),
    Decision("localities", r".* endpoint endpoints\..*\.locality\..*", _only_istiod),
    Decision("client-dns", r"client (cluster|endpoint) .*", _of_dns),
    Decision(
        "client-load-balancing",
        r"client cluster (lb_policy|maglev_lb_config\.table_size)",
        _only_istiod,
    ),
    Decision("client-load-reports", r"client cluster lrs_server\.self", _only_ours),
    Decision(
        "client-short-names",
        r"client route ",
        lambda each: _only_istiod(each) and _is_alias(each.name),
    ),
    Decision("client-route-names", rf"client {_ROUTE}\.name"),
    Decision("client-http-1", r"client (listener|route|cluster|endpoint) ", _only_istiod),
    Decision("client-listener-address", r"client listener address\..*", _only_istiod),
    Decision(
        "client-answers",
        rf"client {_ROUTE}\.(redirect|direct_response|non_forwarding_action)(\..*)?",
    ),
    Decision(
        "client-timeouts",
        rf"client {_ROUTE}\.route\."
        r"(timeout|max_grpc_timeout|max_stream_duration\.max_stream_duration)",
    ),
    Decision(
        "client-ignores",
        r"client route include_request_attempt_count"
        rf"|client {_ROUTE}\.(request|response)_headers_to_(add|remove)\[\d+\](\..*)?"
        rf"|client {_ROUTE}\.typed_per_filter_config\.envoy\.filters\.http\.cors\..*"
        rf"|client {_ROUTE}\.route\.(host_rewrite_literal|prefix_rewrite|regex_rewrite\..*"
        r"|request_mirror_policies\[\d+\]\..*"
        r"|weighted_clusters\.clusters\[\d+\]\.(host_rewrite_literal|(request|response)_headers_to_.*))",
        _only_istiod,
    ),
)
