"""The metrics of the discovery service, as Prometheus scrapes them."""

import re

import aiohttp
from ads_double import CLUSTER, cluster

from tidegate.mesh.resources import Change, ProxyKind


async def scrape(port):
    """The samples of the discovery service."""
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    found = re.findall(r"^((?:tidegate_xds|grpc_server_msg)_\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_responses_rejections_and_proxies_are_counted(distribution, ports, delta):
    _, metrics_port = ports
    distribution.apply(ProxyKind.ENVOY, Change(put=(cluster("a"),)))
    before = await scrape(metrics_port)
    await delta.send(CLUSTER)
    response = await delta.take()
    distribution.apply(ProxyKind.ENVOY, Change(put=(cluster("a", 2),)))
    await delta.nack(await delta.read())
    await delta.send("type.googleapis.com/unknown")
    assert await delta.is_quiet()
    after = await scrape(metrics_port)

    def grown(name):
        return after[name] - before.get(name, 0)

    labels = '{proxy_kind="envoy",type="cluster"}'
    # Two for the cluster, and one for the last request.
    assert grown(f"tidegate_xds_pushes_total{labels}") == 3
    size = response.message.ByteSize()
    assert grown(f"tidegate_xds_push_bytes_total{labels}") > 2 * size
    assert grown(f"tidegate_xds_nacks_total{labels}") == 1
    assert grown(f"tidegate_xds_ack_seconds_count{labels}") >= 2
    method = (
        'grpc_method="DeltaAggregatedResources",'
        'grpc_service="envoy.service.discovery.v3.AggregatedDiscoveryService",'
        'grpc_type="bidi_stream"'
    )
    assert grown(f"grpc_server_msg_sent_total{{{method}}}") == 3
    assert grown("tidegate_xds_ignored_requests_total") == 1
    assert grown('tidegate_xds_proxies{protocol="delta",proxy_kind="envoy"}') == 1
