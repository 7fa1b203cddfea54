"""HTTPS with a certificate from files: nothing else is spoken, and files that change are used by the next connection."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import running_engine

from .conftest import ASK, DEADLINE_SECONDS, ApiServer, engine_config

HOST = "127.0.0.1"


def write_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of that name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files


def name_shown(port: int) -> str:
    """By whoever answers a new connection, which says no name itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((HOST, port), timeout=DEADLINE_SECONDS) as connection, context.wrap_socket(connection) as tls:
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_an_engine_with_a_certificate_serves_https_and_nothing_else(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "engine")
    engine = running_engine.start(tmp_path, f"--tls-certificate-file={certificate}", f"--tls-key-file={key}")
    try:
        assert engine.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=engine.url, verify=trusted, timeout=DEADLINE_SECONDS) as client:
            assert client.get("/ready").status_code == 200
            asked = {**ASK, "stream": True}
            with client.stream("POST", "/v1/completions", json=asked) as response:
                assert response.read().endswith(b"data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{engine.url}/ready", timeout=DEADLINE_SECONDS)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{engine.url.replace('https', 'http')}/ready", timeout=DEADLINE_SECONDS)
    finally:
        running_engine.end(engine)
    assert engine.process.returncode == 0


def test_files_that_change_are_used_by_the_next_connection_if_they_can_be(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "first")
    config = engine_config(tls_certificate_file=str(certificate), tls_key_file=str(key))
    with ApiServer(tmp_path, config) as server:
        server.core()
        server.launcher.wait_for("ready")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://{HOST}:{server.port}", verify=trusted, timeout=DEADLINE_SECONDS) as client:
            assert client.get("/health").status_code == 200
            second, second_key = write_pair(tmp_path, "second")
            os.replace(second, certificate)
            # Only one of the two files is there yet.
            assert [name_shown(server.port), name_shown(server.port)] == ["first", "first"]
            assert server.log_text().count("cannot be used, the one before goes on") == 1
            os.replace(second_key, key)
            assert name_shown(server.port) == "second"
            assert client.get("/health").status_code == 200, "the connection from before goes on"
        key.unlink()
        assert name_shown(server.port) == "second"


@pytest.mark.parametrize(
    ("key", "found"), [("other.key", "key values mismatch"), ("none.key", "No such file"), ("first.crt", "SSL")], ids=str
)
def test_a_pair_that_cannot_be_used_is_said_at_the_start(tmp_path: Path, key: str, found: str) -> None:
    certificate, _ = write_pair(tmp_path, "first")
    write_pair(tmp_path, "other")
    config = engine_config(tls_certificate_file=str(certificate), tls_key_file=str(tmp_path / key))
    with ApiServer(tmp_path, config) as server:
        failed = server.launcher.wait_for("failed")
        assert failed["class"] == "InvalidConfig"
        assert "HTTPS wants a certificate chain and its private key" in failed["message"]
        assert found in failed["message"]
        assert server.process.wait(DEADLINE_SECONDS) == 78
