"""Markers: an object of each kind whose effects show which state of the objects istiod has read."""

MARKER_HOST = "marker.markers.test"
MARKER_PORT = 19
MARKER_NAMESPACE = "markers"


def marker_objects(count):
    """One object of each kind, whose effects show the number of this state."""
    mark = f"m{count}"

    def item(kind, spec):
        return {
            "apiVersion": "networking.istio.io/v1",
            "kind": kind,
            "metadata": {"name": "marker", "namespace": MARKER_NAMESPACE},
            "spec": spec,
        }

    domain = f"{mark}.test"
    port = {"number": MARKER_PORT, "name": "marker", "protocol": "HTTP"}
    yield item(
        "Gateway",
        {"selector": {"istio": "ingress"}, "servers": [{"port": port, "hosts": [domain]}]},
    )
    yield item(
        "VirtualService",
        {
            "hosts": [domain, MARKER_HOST],
            "gateways": ["marker", "mesh"],
            "http": [
                {
                    "match": [{"uri": {"prefix": f"/{mark}"}}],
                    "route": [{"destination": {"host": MARKER_HOST, "subset": mark}}],
                }
            ],
        },
    )
    yield item(
        "DestinationRule",
        {"host": MARKER_HOST, "subsets": [{"name": mark, "labels": {"mark": "marker"}}]},
    )
    yield item(
        "ServiceEntry",
        {
            "hosts": [MARKER_HOST],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [
                {
                    "number": 80,
                    "name": "http",
                    "protocol": "HTTP",
                    "targetPort": count,
                }
            ],
            "workloadSelector": {"labels": {"mark": "marker"}},
        },
    )
    yield item("WorkloadEntry", {"address": marker_address(count), "labels": {"mark": "marker"}})


def router_marks(count):
    """Texts that are all in the JSON of a router's resources if the markers of a state are."""
    return (f'"m{count}.test"', *client_marks(count))


def client_marks(count):
    """Texts that are all in the JSON of a client's resources if the markers of a state are."""
    return (
        f'|m{count}|{MARKER_HOST}"',
        f'"/m{count}"',
        f'"{marker_address(count)}"',
        f'"port_value": {count}}}',
    )


def marker_address(count):
    return f"10.9.{count // 250}.{1 + count % 250}"
