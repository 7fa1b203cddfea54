"""A few requests to the apiserver.

The one job: JSON over HTTPS with the administrator's certificate, with standard library alone.
The invariant kept: every request has a time-out; an answer that is not 2xx is an ApiError with its text.
Not done here: watches, retries.
"""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LocalkubeError
from .network import PORT


class ApiError(LocalkubeError):
    """The apiserver refused."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ApiClient:
    """Requests to one apiserver as one client certificate."""

    address: str
    pki: Path
    identity: str = "admin"
    timeout_seconds: float = 10.0

    def request(self, method: str, path: str, body: object = None, *, content_type: str = "application/json") -> Any:
        """Send one request and return its decoded answer (text where it is not JSON)."""
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / f"{self.identity}.crt", self.pki / f"{self.identity}.key")
        connection = http.client.HTTPSConnection(self.address, PORT, timeout=self.timeout_seconds, context=context)
        try:
            headers = {"Content-Type": content_type, "User-Agent": "localkube"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= 300:
            raise ApiError(f"{method} {path}: {response.status} {text[:500]}", status=response.status)
        return json.loads(text) if response.headers.get_content_type() == "application/json" else text

    def create(self, path: str, body: object) -> None:
        """POST, content with what exists already."""
        try:
            self.request("POST", path, body)
        except ApiError as error:
            if error.status != http.client.CONFLICT:
                raise

    def ready(self, path: str) -> bool:
        """Whether a health path answers 200 now."""
        try:
            self.request("GET", path)
        except (OSError, ApiError, http.client.HTTPException):
            return False
        return True
