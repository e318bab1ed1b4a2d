"""TLS from Envoy to the endpoints."""

import subprocess

import grpc
import pytest
from envoy_harness import Backend
from mesh_objects import (
    DOMAIN,
    HTTP_OPTIONS,
    VISION,
    body,
    entry,
    everywhere,
    gateway,
    rule,
    text,
    to,
    virtual,
)

from tidegate.mesh.compiler import EndpointState

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for vision.example.com."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-days", "2", "-subj", "/CN=vision", "-keyout", folder / "key.pem"),
            *("-addext", f"subjectAltName=DNS:{DOMAIN}", "-out", folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("authority", [DOMAIN, "other.example.com"])
async def test_tls_to_the_endpoints(mesh, certificates, authority):
    cert, key = (certificates / each for each in ("cert.pem", "key.pem"))
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), require_client_auth=True
    )
    secured = Backend("secured", credentials)
    await secured.server.start()
    tls = {
        "mode": "MUTUAL",
        "clientCertificate": str(cert),
        "privateKey": str(key),
        "caCertificates": str(cert),
        "subjectAltNames": [authority],
        "sni": DOMAIN,
    }
    host = f"for-{authority.split('.')[0]}"
    await mesh.apply(
        text(
            gateway(mesh.port),
            entry({"v1": secured.port}, host=f"{host}.models.svc.cluster.local"),
            rule({"tls": tls}, (), host),
            virtual({"route": [to(host=host)]}),
        ),
        {f"127.0.0.1:{secured.port}": EndpointState.HEALTHY},
    )
    answer = await mesh.call(DOMAIN)
    await secured.server.stop(None)
    if authority == DOMAIN:
        assert answer.backend == "secured"
    else:
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert secured.calls == []


async def test_sni_is_the_requested_host_unless_the_rule_sets_it(mesh, vision):
    tls = {"mode": "SIMPLE", "caCertificates": "/etc/ssl/certs/ca-certificates.crt"}
    compiled = mesh.compile(vision(everywhere(), policy={"tls": tls}))
    made = body(compiled, "CLUSTER", f"outbound|8500||{VISION}")
    options = made["typed_extension_protocol_options"][HTTP_OPTIONS]
    assert options["upstream_http_protocol_options"] == {
        "auto_sni": True,
        "auto_san_validation": True,
    }
    context = made["transport_socket"]["typed_config"]["common_tls_context"]
    assert context["alpn_protocols"] == ["h2"]
    assert context["tls_params"] == {
        "tls_minimum_protocol_version": "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_3",
    }
