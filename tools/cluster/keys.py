"""Keys, certificates and tokens of a cluster's API server."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = ["kubeconfig", "write_keys"]

_LIFETIME = dt.timedelta(days=30)


def write_keys(folder: Path, token: str, addresses: tuple[str, ...]) -> None:
    """Writes what the API server needs to serve.

    Args:
        folder: The folder for `apiserver.{crt,key}`, `sa.{pub,key}` and `tokens.csv`.
        token: The administrator's token.
        addresses: The addresses at which clients call the server.
    """
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = accounts.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "sa.key").write_bytes(_private(accounts))
    (folder / "sa.pub").write_bytes(public)
    server = ec.generate_private_key(ec.SECP256R1())
    (folder / "apiserver.key").write_bytes(_private(server))
    (folder / "apiserver.crt").write_bytes(_certificate(server, addresses))


def kubeconfig(url: str, certificate: Path, token: str) -> str:
    """Returns the content of a kubeconfig of the administrator."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test-cluster",
                "cluster": {"server": url, "certificate-authority": str(certificate)},
            }
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [
            {"name": "test-cluster", "context": {"cluster": "test-cluster", "user": "admin"}}
        ],
        "current-context": "test-cluster",
    }
    return json.dumps(content, indent=1)


def _private(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _certificate(key: ec.EllipticCurvePrivateKey, addresses: tuple[str, ...]) -> bytes:
    """A certificate that the server signs itself, so that clients trust this one alone."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-cluster")])
    names: list[x509.GeneralName] = [
        x509.DNSName("kubernetes"),
        x509.DNSName("kubernetes.default.svc"),
        *(x509.IPAddress(ipaddress.ip_address(each)) for each in addresses),
    ]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)
