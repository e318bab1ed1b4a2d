"""EnvoyFilters that make a version of a host bad, in the sidecar beside its server: pure."""

__all__ = ["FAULT_NAME", "fault_filter"]

FAULT_NAME = "candidate-fault"
_HCM = "envoy.filters.network.http_connection_manager"
_HCM_TYPE = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
    ".HttpConnectionManager"
)
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
        "match": _inbound({"subFilter": {"name": "envoy.filters.http.router"}}),
        "patch": {
            "operation": "INSERT_BEFORE",
            "value": {"name": FAULT_NAME, "typed_config": fault},
        },
    }


def _cut(cut_s):
    options = {"max_stream_duration": f"{cut_s}s"}
    config = {"@type": _HCM_TYPE, "common_http_protocol_options": options}
    return {
        "applyTo": "NETWORK_FILTER",
        "match": _inbound({}),
        "patch": {"operation": "MERGE", "value": {"name": _HCM, "typed_config": config}},
    }


def _inbound(more):
    chain = {"filter": {"name": _HCM, **more}}
    return {"context": "SIDECAR_INBOUND", "listener": {"filterChain": chain}}
