"""Keys and certificates of one cluster.

The one job: one authority, the serving certificates, a client certificate per component, the service-account key.
The invariant kept: every name and address that is dialled is in the certificate met there; only the owner reads keys.
Not done here: renewal. A cluster lives for days, a certificate for ten years.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=3650)
_CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Identity:
    """Whom a client certificate speaks for."""

    user: str
    groups: tuple[str, ...] = ()


class Authority:
    """A certificate authority that writes what it signs into one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())  # P-256: a key takes microseconds, RSA a tenth of a second
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localkube")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.certificate = self._write_certificate("ca", certificate)

    def serving(self, name: str, *, dns: tuple[str, ...] = (), addresses: tuple[str, ...] = ()) -> None:
        """Write `name`.crt and `name`.key for a server reached under these names and addresses."""
        names = [*map(x509.DNSName, dns), *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
        self._issue(name, Identity(name), usage=ExtendedKeyUsageOID.SERVER_AUTH, names=names)

    def client(self, name: str, *, identity: Identity) -> None:
        """Write `name`.crt and `name`.key for a client that is `identity`."""
        self._issue(name, identity, usage=ExtendedKeyUsageOID.CLIENT_AUTH, names=[])

    def signing_key(self, name: str) -> None:
        """Write `name`.key and `name`.pub, with which service-account tokens are signed and checked."""
        key = ec.generate_private_key(ec.SECP256R1())
        self._write_key(name, key)
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        _write(self._folder / f"{name}.pub", public)

    def _issue(self, name: str, identity: Identity, *, usage: x509.ObjectIdentifier, names: list[x509.GeneralName]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
        subject = x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, identity.user)])
        builder = self._builder(subject, key).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        self._write_certificate(name, builder.sign(self._key, hashes.SHA256()))
        self._write_key(name, key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _LIFETIME)
        )

    def _write_certificate(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._folder / f"{name}.crt"
        _write(path, certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(self._folder / f"{name}.key", key.private_bytes(*form))


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
