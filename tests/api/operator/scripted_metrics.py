"""A metrics API beside the API server, by script: what an adapter for Prometheus would say of pods.

The one job: be an APIService of `custom.metrics.k8s.io` that answers for one metric.
The invariant kept: the APIService goes before its server does, or discovery would fail for everybody.
Not done here: other metrics, other objects than pods.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kubernetes import client as kubernetes_client

from localkube.pki import Authority

GROUP, VERSION = "custom.metrics.k8s.io", "v1beta2"
ANSWER_SECONDS = 10

Values = Callable[[str], dict[str, int]]
"""Of a label selector: the metric of each pod, by name."""


class ScriptedMetrics:
    """Serves while the context lasts."""

    def __init__(
        self, api: kubernetes_client.ApiClient, namespace: str, *, metric: str, values: Values, certificates: Path
    ) -> None:
        self._core = kubernetes_client.CoreV1Api(api)
        self._registration = kubernetes_client.ApiregistrationV1Api(api)
        self._namespace = namespace
        self._path = f"/apis/{GROUP}/{VERSION}"
        self._metric = metric
        self._values = values
        Authority(certificates).serving("metrics", dns=("localhost",))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "metrics.crt", certificates / "metrics.key")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.asked: list[str] = []
        """Label selectors, as asked for."""

    def __enter__(self) -> ScriptedMetrics:
        self._thread.start()
        service = {"type": "ExternalName", "externalName": "localhost"}
        self._core.create_namespaced_service(self._namespace, {"metadata": {"name": "metrics"}, "spec": service})
        where = {"name": "metrics", "namespace": self._namespace, "port": self._server.server_address[1]}
        spec = {"group": GROUP, "version": VERSION, "groupPriorityMinimum": 100, "versionPriority": 100, "service": where}
        name = f"{VERSION}.{GROUP}"
        self._registration.create_api_service({"metadata": {"name": name}, "spec": spec | {"insecureSkipTLSVerify": True}})
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._registration.delete_api_service(f"{VERSION}.{GROUP}")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(ANSWER_SECONDS)

    def _answer(self, target: str) -> dict[str, Any] | None:
        url = urlsplit(target)
        path = unquote(url.path)
        if path == self._path:
            resource = {"name": f"pods/{self._metric}", "singularName": "", "namespaced": True, "kind": "MetricValueList"}
            listed = [resource | {"verbs": ["get"]}]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": listed}
        if path != f"{self._path}/namespaces/{self._namespace}/pods/*/{self._metric}":
            return None
        (selector,) = parse_qs(url.query)["labelSelector"]
        self.asked.append(selector)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        items = [
            {
                "describedObject": {"kind": "Pod", "apiVersion": "v1", "namespace": self._namespace, "name": pod},
                "metric": {"name": self._metric},
                "timestamp": now,
                "value": str(value),
            }
            for pod, value in self._values(selector).items()
        ]
        return {"kind": "MetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            timeout = ANSWER_SECONDS

            def do_GET(self) -> None:
                found = answer(self.path)
                body = json.dumps(found if found is not None else {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Silent."""

        return Handler
