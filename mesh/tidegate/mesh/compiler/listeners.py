"""Listeners of gateways, and their route configurations.

Listeners and route configurations name no host: the routes of a domain are a resource of their own
(see `route_tables`). So after a weight change the server sends one domain only, and a new host
changes no listener. (Envoy drains all connections of a changed listener.)

Streams of models are long and may be silent for long, so no idle timeout ends one. Headers are
protected as istiod does at the edge: the client's address is that of the connection, Envoy writes
its certificate into a header that clients cannot set, and paths are normalised before they are
matched.
"""

from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue

from tidegate.istio.gateway import ServerTls, ServerTlsMode, TlsVersion
from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway
from tidegate.mesh.compiler.naming import listener_name
from tidegate.mesh.compiler.protobuf import packed, socket_address
from tidegate.mesh.compiler.routes.filters import envoy_filters
from tidegate.mesh.compiler.routes.route_tables import look_up, route_configuration
from tidegate.mesh.compiler.settings import MeshSettings
from tidegate.mesh.resources import Resource, ResourceType

__all__ = ["listener_resources"]

# As in istiod, Envoy closes a connection whose TLS handshake takes longer.
_HANDSHAKE_SECONDS: Final = 15
_TLS_VERSIONS: Final = {
    TlsVersion.TLSV1_2: common_pb2.TlsParameters.TLSv1_2,
    TlsVersion.TLSV1_3: common_pb2.TlsParameters.TLSv1_3,
}


def listener_resources(
    merged_gateways: Iterable[MergedGateway], settings: MeshSettings
) -> tuple[Resource, ...]:
    """The listener of a port, and its route configurations.

    Args:
        merged_gateways: The merged gateways of the port; one, or several with TLS.
        settings: The address, the access log and the tracing.
    """
    merged_gateways = tuple(merged_gateways)
    port = merged_gateways[0].port
    listener = listener_pb2.Listener(
        name=listener_name(port),
        address=socket_address(settings.listen_address, port),
        filter_chains=[
            _filter_chain(merged_gateway, settings) for merged_gateway in merged_gateways
        ],
    )
    if merged_gateways[0].tls:
        listener.listener_filters.add(
            name="envoy.filters.listener.tls_inspector",
            typed_config=packed(tls_inspector_pb2.TlsInspector()),
        )
    return (
        Resource.of(ResourceType.LISTENER, listener.name, listener),
        *map(route_configuration, merged_gateways),
    )


def _filter_chain(
    merged_gateway: MergedGateway, settings: MeshSettings
) -> listener_components_pb2.FilterChain:
    chain = listener_components_pb2.FilterChain(
        filters=[
            listener_components_pb2.Filter(
                name="envoy.filters.network.http_connection_manager",
                typed_config=packed(_connection_manager(merged_gateway, settings)),
            )
        ],
        transport_socket_connect_timeout=Duration(seconds=_HANDSHAKE_SECONDS),
    )
    if merged_gateway.tls:
        domains = [domain for server in merged_gateway.servers for _, domain in server.domains]
        if "*" not in domains:
            chain.filter_chain_match.server_names.extend(domains)
        tls = next(server.server.tls for server in merged_gateway.servers if server.server.tls)
        chain.transport_socket.name = "envoy.transport_sockets.tls"
        chain.transport_socket.typed_config.CopyFrom(packed(_downstream_tls(tls)))
    return chain


def _connection_manager(
    merged_gateway: MergedGateway, settings: MeshSettings
) -> HttpConnectionManager:
    details = HttpConnectionManager.SetCurrentClientCertDetails(
        subject=BoolValue(value=True), cert=True, dns=True, uri=True
    )
    manager = HttpConnectionManager(
        codec_type=HttpConnectionManager.AUTO,
        stat_prefix=f"outbound_{listener_name(merged_gateway.port)}",
        http_filters=envoy_filters(
            grpc_web=merged_gateway.grpc_web, mirror_log=settings.mirror_log
        ),
        use_remote_address=BoolValue(value=True),
        generate_request_id=BoolValue(value=True),
        normalize_path=BoolValue(value=True),
        path_with_escaped_slashes_action=HttpConnectionManager.KEEP_UNCHANGED,
        forward_client_cert_details=HttpConnectionManager.SANITIZE_SET,
        set_current_client_cert_details=details,
        stream_idle_timeout=Duration(),
        # The server, not Envoy, answers "Expect: 100-continue".
        proxy_100_continue=True,
        upgrade_configs=[HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
    )
    look_up(manager, merged_gateway)
    if settings.access_log is not None:
        manager.access_log.append(settings.access_log)
    if settings.tracing is not None:
        manager.tracing.CopyFrom(settings.tracing)
    return manager


def _downstream_tls(tls: ServerTls) -> tls_pb2.DownstreamTlsContext:
    common = tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=_TLS_VERSIONS.get(
                tls.min_protocol_version, common_pb2.TlsParameters.TLSv1_2
            ),
            tls_maximum_protocol_version=_TLS_VERSIONS.get(
                tls.max_protocol_version, common_pb2.TlsParameters.TLSv1_3
            ),
            cipher_suites=tls.cipher_suites,
        ),
        alpn_protocols=["h2", "http/1.1"],
    )
    common.tls_certificates.add(
        certificate_chain=base_pb2.DataSource(filename=tls.server_certificate),
        private_key=base_pb2.DataSource(filename=tls.private_key),
    )
    mutual = tls.mode is ServerTlsMode.MUTUAL
    if mutual:
        common.validation_context.CopyFrom(_client_validation(tls))
    return tls_pb2.DownstreamTlsContext(
        common_tls_context=common, require_client_certificate=BoolValue(value=mutual)
    )


def _client_validation(tls: ServerTls) -> common_pb2.CertificateValidationContext:
    context = common_pb2.CertificateValidationContext(
        trusted_ca=base_pb2.DataSource(filename=tls.ca_certificates),
        match_typed_subject_alt_names=[
            common_pb2.SubjectAltNameMatcher(
                san_type=kind, matcher=string_pb2.StringMatcher(exact=name)
            )
            for name in tls.subject_alt_names
            for kind in (
                common_pb2.SubjectAltNameMatcher.DNS,
                common_pb2.SubjectAltNameMatcher.URI,
            )
        ],
    )
    if tls.ca_crl:
        context.crl.filename = tls.ca_crl
    return context
