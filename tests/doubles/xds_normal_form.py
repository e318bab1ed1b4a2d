"""The normal form in which resources of Tidegate's compiler and of istiod are compared.

`of_istiod` and `of_compiler` make the same shape of both: leaves of resources by type, name and
path. Each normalisation removes a difference that no request can see, and says why. Whatever stays
different is a `Difference`.
"""

import re
from dataclasses import dataclass
from typing import Any

from istiod_markers import MARKER_HOST, MARKER_PORT
from xds_reading import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    MESSAGES,
    ROUTE,
    as_dict,
    cluster_names,
    eds_names,
    route_names,
)

from tidegate.mesh.resources import ResourceType

_SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Difference:
    """A leaf that differs.

    Attributes:
        proxy: ``router`` or ``client``.
        type: The type of the resource, in lower case.
        name: The name of the resource; of a route, with the domain.
        path: The path of the leaf.
        istiod: Its value there; None where it is absent.
        ours: Its value here; None where it is absent.
    """

    proxy: str
    type: str
    name: str
    path: str
    istiod: Any
    ours: Any

    def __str__(self):
        return (
            f"{self.proxy} {self.type} {self.name}: {self.path}: istiod {self.istiod!r}, "
            f"Tidegate {self.ours!r}"
        )


def differences(proxy, istiod, ours):
    """The leaves in which two normal forms differ."""
    for key in sorted(istiod.keys() | ours.keys()):
        theirs, mine = istiod.get(key), ours.get(key)
        if theirs is None or mine is None:
            there = (None, "present") if theirs is None else ("present", None)
            yield Difference(proxy, *key, "", *there)
            continue
        for path in sorted(theirs.keys() | mine.keys()):
            if theirs.get(path) != mine.get(path):
                yield Difference(proxy, *key, path, theirs.get(path), mine.get(path))


def of_istiod(resources):
    """The normal form of resources that `XdsReader` read."""
    return _normal(
        (kind, name, each)
        for kind, named in resources.by_type.items()
        for name, each in named.items()
        if not _is_builtin(name)
    )


def of_compiler(resources):
    """The normal form of compiled resources."""
    return _normal(_compiled(resources))


def of_client(resources, targets):
    """The normal form of the compiled resources that a proxyless client asks for.

    Args:
        resources: All resources for gRPC clients.
        targets: What the client dials, as ``host:port``.
    """
    by_type = {kind: {} for kind in (LISTENER, ROUTE, CLUSTER, ENDPOINT)}
    for kind, name, message in _compiled(resources):
        by_type[kind][name] = message
    listeners = {name: each for name, each in by_type[LISTENER].items() if name in set(targets)}
    routes = _named(by_type[ROUTE], route_names(listeners))
    clusters = _named(by_type[CLUSTER], cluster_names(routes))
    endpoints = _named(by_type[ENDPOINT], eds_names(clusters))
    read = {LISTENER: listeners, ROUTE: routes, CLUSTER: clusters, ENDPOINT: endpoints}
    return _normal(
        (kind, name, each) for kind, named in read.items() for name, each in named.items()
    )


def _named(resources, names):
    return {name: resources[name] for name in names if name in resources}


def _compiled(resources):
    for key, resource in resources.items():
        # A scope has the virtual host again, which is a resource of its own too.
        if key.type is ResourceType.SCOPED_ROUTE:
            continue
        message = MESSAGES[key.type]()
        resource.body.Unpack(message)
        if key.type is ResourceType.VIRTUAL_HOST:
            table, _, _ = key.name.rpartition("/")
            yield ROUTE, table, {"virtual_hosts": [as_dict(message)]}
        else:
            yield key.type, key.name, as_dict(message)


def _is_builtin(name):
    """istiod's own clusters, the API server's, and the markers of the tests."""
    builtin = ("BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster")
    parts = ("||kubernetes.default.svc.", MARKER_HOST)
    return (
        name in builtin
        or any(each in name for each in parts)
        or name in (f"0.0.0.0_{MARKER_PORT}", f"http.{MARKER_PORT}")
    )


def _normal(resources):
    made = {}
    for kind, name, resource in resources:
        resource = dict(resource)
        kept = made.setdefault
        for host in resource.pop("virtual_hosts", ()):
            # istiod groups domains with equal routes; each domain counts here.
            rest = {key: each for key, each in host.items() if key not in ("name", "domains")}
            rest["routes"] = _reached(rest.get("routes", ()))
            for domain in host["domains"]:
                found = kept(("route", f"{name} {domain}"), {})
                found.update(_normalised("route", _leaves(rest, "")))
        if kind is ENDPOINT:
            resource = _by_address(resource)
        if kind is not ROUTE or resource.keys() - {"name"}:
            type_name = kind.name.lower()
            kept((type_name, name), {}).update(_normalised(type_name, _leaves(resource, "")))
    return made


def _reached(routes):
    """The routes that a request can reach.

    Not those after a route for every request, and not one with the conditions of an earlier one.
    """
    kept, seen = [], []
    for route in routes:
        if route["match"] not in seen:
            kept.append(route)
        seen.append(route["match"])
        if route["match"] in ({"prefix": "/"}, {"prefix": "/", "case_sensitive": True}):
            break
    return kept


def _by_address(assignment):
    """Endpoints by address: Envoy and gRPC choose among all, in whatever order they come.

    The weight of a locality is the sum of the weights of its endpoints.
    """
    found = {}
    for group in assignment.get("endpoints", ()):
        total = sum(each.get("load_balancing_weight", 1) for each in group["lb_endpoints"])
        assert group["load_balancing_weight"] == total
        for each in group["lb_endpoints"]:
            address = each["endpoint"]["address"]["socket_address"]
            name = f"{address['address']}:{address['port_value']}"
            rest = {key: value for key, value in each.items() if key != "endpoint"}
            # One at a time, so that an address that is there twice is seen.
            name += "'" * sum(1 for other in found if other.rstrip("'") == name)
            found[name] = rest | ({"locality": group["locality"]} if group["locality"] else {})
    return {"endpoints": found}


def _leaves(value, path):
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from _leaves(each, f"{path}[{index}]")
    else:
        yield path, value


def _normalised(kind, leaves):
    leaves = dict(leaves)
    for each in _NORMALISATIONS:
        leaves = each(kind, leaves)
    return leaves


def _without_names_for_statistics(_kind, leaves):
    """Names of statistics and spans, and labels for telemetry, route no request."""
    return _without(
        leaves,
        r"alt_stat_name",
        r"metadata\.filter_metadata\.istio\.(config|services|subset|external|alpn_override).*",
        r".*\.metadata\.filter_metadata\.(istio\.config|tidegate\.mesh\..*)",
        r".*\.stat_prefix",
        r".*\.decorator\.operation",
        r"traffic_direction",
        r".*\.track_remaining",
        r".*\.typed_config\.tracing\..*",
        r".*\.request_id_extension\..*",
    )


def _without_fields_at_their_default(kind, leaves):
    """A field that is written with Envoy's default has the effect of one that is left out."""
    defaults = {
        # An empty message or text in a list of fields: nothing is set there.
        r".*\.(common_http_protocol_options|http_protocol_options)": {},
        r".*\.explicit_http_config\.http_protocol_options": {},
        r".*\.redirect": {},
        r".*\.path_redirect": "",
        r".*\.inline_string": "",
        r".*\.(initial_fetch_timeout)": "0s",
        r".*\.resource_api_version": "V3",
        r".*ring_hash_lb_config\.minimum_ring_size": "1024",
        r".*slow_start_config\.aggression\.default_value": 1.0,
        r".*slow_start_config\.min_weight_percent\.value": 10.0,
        r".*\.generate_request_id": True,
        r".*\.health_status": "HEALTHY",
        r".*\.tls_params\.tls_minimum_protocol_version": "TLSv1_2",
        r".*\.tls_params\.tls_maximum_protocol_version": "TLSv1_3",
        r"validate_clusters": False,
    }
    return {
        path: value
        for path, value in leaves.items()
        if not any(
            re.fullmatch(pattern, path) and value == default
            for pattern, default in defaults.items()
        )
    }


def _without_options_of_http_1(_kind, leaves):
    """Options of a protocol without any option are those of HTTP/1.1, Envoy's default."""
    options = [path for path in leaves if path.startswith("typed_extension_protocol_options.")]
    if len(options) == 1 and options[0].endswith("@type"):
        return {path: value for path, value in leaves.items() if path != options[0]}
    return leaves


def _without_runtime_keys(_kind, leaves):
    """No Envoy here has a runtime layer, so the name of a runtime key changes nothing."""
    return _without(leaves, r".*\.runtime_key")


def _with_shares_of_a_million(_kind, leaves):
    """Envoy reads 50 of a hundred and 500,000 of a million as the same share."""
    result = dict(leaves)
    for path, value in leaves.items():
        base, _, last = path.rpartition(".")
        if last == "numerator" and f"{base}.denominator" not in leaves:
            result[path] = value * 10_000
        elif last == "denominator":
            del result[path]
    return result


def _without_faults_of_no_request(_kind, leaves):
    """A fault for 0 percent of requests is none, whatever it would do."""
    result = dict(leaves)
    for fault, effects in (
        ("delay", ("fixed_delay",)),
        ("abort", ("http_status", "grpc_status")),
    ):
        for path in leaves:
            for effect in effects:
                base = path.removesuffix(f".{fault}.{effect}")
                share = f"{base}.{fault}.percentage.numerator"
                if base != path and not leaves.get(share):
                    for each in (path, f"{base}.{fault}.percentage"):
                        result.pop(each, None)
    return result


def _with_files_of_secrets(_kind, leaves):
    """istiod's agent reads these files for Envoy, which gets them as secrets; ours reads them."""
    moved = {}
    for path, value in leaves.items():
        path = path.replace(
            "combined_validation_context.default_validation_context", "validation_context"
        )
        if ".sds_config." in path:
            continue
        if path.endswith(".combined_validation_context.validation_context_sds_secret_config.name"):
            base = path.removesuffix(
                ".combined_validation_context.validation_context_sds_secret_config.name"
            )
            file = value.removeprefix("file-root:")
            moved[f"{base}.validation_context.trusted_ca.filename"] = (
                _SYSTEM_AUTHORITIES if file == "system" else file
            )
        elif secret := re.fullmatch(
            r"(.*)\.tls_certificate_sds_secret_configs(\[\d+\])\.name", path
        ):
            chain, key = value.removeprefix("file-cert:").split("~")
            base = f"{secret[1]}.tls_certificates{secret[2]}"
            moved[f"{base}.certificate_chain.filename"] = chain
            moved[f"{base}.private_key.filename"] = key
        elif not (path.endswith(".validation_context") and value == {}):
            moved[path] = value
    return moved


def _with_sorted_query_parameters(_kind, leaves):
    """All conditions must hold, and istiod writes those on query parameters in a random order."""
    groups = {}
    for path, value in leaves.items():
        if found := re.fullmatch(r"(.*\.query_parameters)\[(\d+)\]\.(.*)", path):
            groups.setdefault(found[1], {}).setdefault(found[2], {})[found[3]] = value
    result = {path: each for path, each in leaves.items() if ".query_parameters[" not in path}
    for base, parameters in groups.items():
        ordered = sorted(parameters.values(), key=lambda each: each["name"])
        for index, parameter in enumerate(ordered):
            for rest, value in parameter.items():
                result[f"{base}[{index}].{rest}"] = value
    return result


def _with_http_2_by_itself(_kind, leaves):
    """That a cluster speaks HTTP/2 is a leaf of its own, beside its options."""
    found = {re.sub(r"(\.http2_protocol_options)\..*", r"\1", path) for path in leaves}
    return leaves | {path: {} for path in found if path.endswith(".http2_protocol_options")}


def _with_sorted_server_names(_kind, leaves):
    """Envoy looks up a server name in all names of a filter chain, whatever their order."""
    groups = {}
    for path, value in leaves.items():
        if found := re.fullmatch(r"(.*\.server_names)\[\d+\]", path):
            groups.setdefault(found[1], []).append(value)
    return leaves | {
        f"{base}[{index}]": value
        for base, values in groups.items()
        for index, value in enumerate(sorted(values))
    }


_NORMALISATIONS = (
    _with_http_2_by_itself,
    _with_sorted_server_names,
    _with_files_of_secrets,
    _with_sorted_query_parameters,
    _without_names_for_statistics,
    _without_fields_at_their_default,
    _without_options_of_http_1,
    _without_runtime_keys,
    _with_shares_of_a_million,
    _without_faults_of_no_request,
)


def _without(leaves, *patterns):
    pattern = re.compile("|".join(f"(?:{each})" for each in patterns))
    return {path: value for path, value in leaves.items() if not pattern.fullmatch(path)}
