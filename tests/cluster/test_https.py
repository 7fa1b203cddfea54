"""HTTPS and an API key where a kubelet probes them: an engine with a certificate and a key in Secrets."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from killed_engine import MODEL, simulated
from localkube.pki import Authority

pytestmark = pytest.mark.cluster

QUESTION = {"model": MODEL, "prompt": [65] * 8, "max_tokens": 4, "ignore_eos": True}
SECONDS = 30
EXCHANGED_SECONDS = 180
"""For a kubelet to bring a changed secret: two minutes by default, a few seconds in localkube."""


def test_an_engine_with_a_certificate_and_a_key_is_ready_answers_by_https_and_to_the_key_alone_and_shows_a_changed_certificate(
    space: Any, tmp_path: Path
) -> None:
    name = f"secure.{space.namespace}.svc"
    authority = Authority(tmp_path)
    for version in ("first", "second"):
        authority.serving(version, dns=(name,))

    def put_secret(version: str) -> None:
        files = (f"--cert={tmp_path / version}.crt", f"--key={tmp_path / version}.key")
        made = space.kubectl("create", "secret", "tls", "certificate", *files, "--dry-run=client", "-o", "yaml")
        space.kubectl("apply", "-f", "-", stdin=made)

    put_secret("first")
    space.kubectl("create", "secret", "generic", "keys", "--from-literal=engine=sesame")
    key = {"apiKeySecretRef": {"name": "keys", "key": "engine"}}
    space.apply(simulated("secure", tls={"secretName": "certificate"}, auth=key))
    space.wait("Ready", name="secure")
    assert space.get("ie/secure")["status"]["endpoint"] == f"https://{name}:80"
    before = space.lives()
    with space.installation.reached("secure", namespace=space.namespace) as plain:
        url = httpx.URL(plain.replace("http", "https"))

        def shown() -> str:
            return ssl.get_server_certificate((url.host, url.port or 443), timeout=SECONDS)

        # By the name that clients in the cluster use, which nothing on this machine resolves.
        context = ssl.create_default_context(cafile=authority.certificate)
        with httpx.Client(verify=context, base_url=url, timeout=SECONDS) as client:
            refused, wrong, answer = (
                client.post("/v1/completions", json=QUESTION, headers=headers, extensions={"sni_hostname": name})
                for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "Bearer sesame"})
            )
        assert [refused.status_code, wrong.status_code, answer.status_code] == [401, 401, 200]
        assert answer.json()["usage"]["completion_tokens"] == 4
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{plain}/ready", timeout=SECONDS)
        assert shown() == (tmp_path / "first.crt").read_text()
        put_secret("second")
        second = (tmp_path / "second.crt").read_text()
        space.eventually("the new certificate is shown", lambda: shown() == second, seconds=EXCHANGED_SECONDS)
    assert space.lives() == before
    space.wait("Ready", name="secure")
