"""EnvoyFilters that make a version of a host bad, in the sidecar beside its server: pure."""

__all__ = ["FAULT_NAME", "fault_filter"]

FAULT_NAME = "candidate-fault"
_HCM = "envoy.filters.network.http_connection_manager"
_ROUTER = "envoy.filters.http.router"
_FAULT_TYPE = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"


def fault_filter(app, version, *, unavailable=0, delay_s=0.0, cut_s=0.0):
    """An EnvoyFilter for the server of a version.

    Args:
        app: The label `app` of the server.
        version: Its label `version`.
        unavailable: Percentage of the calls that end with UNAVAILABLE and do not reach the server.
        delay_s: How much later each call reaches the server, in seconds.
        cut_s: After how many seconds a call is reset, although its answer has begun; 0 for never.
    """
    patches = []
    if unavailable or delay_s:
        patches.append(_fault(unavailable, delay_s))
    if cut_s:
        patches.append(_cut(cut_s))
    return {
        "metadata": {"name": FAULT_NAME},
        "spec": {
            "workloadSelector": {"labels": {"app": app, "version": version}},
            "configPatches": patches,
        },
    }


def _fault(unavailable, delay_s):
    fault = {"@type": _FAULT_TYPE}
    if unavailable:
        fault["abort"] = {"grpc_status": 14, "percentage": {"numerator": unavailable}}
    if delay_s:
        fault["delay"] = {"fixed_delay": f"{delay_s}s", "percentage": {"numerator": 100}}
    return {
        "applyTo": "HTTP_FILTER",
        "match": {
            "context": "SIDECAR_INBOUND",
            "listener": {"filterChain": {"filter": {"name": _HCM, "subFilter": {"name": _ROUTER}}}},
        },
        "patch": {
            "operation": "INSERT_BEFORE",
            "value": {"name": FAULT_NAME, "typed_config": fault},
        },
    }


def _cut(cut_s):
    # Also for calls with a deadline of their own.
    limits = {"max_stream_duration": f"{cut_s}s", "grpc_timeout_header_max": f"{cut_s}s"}
    return {
        "applyTo": "HTTP_ROUTE",
        "match": {"context": "SIDECAR_INBOUND"},
        "patch": {
            "operation": "MERGE",
            "value": {"route": {"max_stream_duration": limits}},
        },
    }
