"""One EngineReplica on a real API server, the rights of its monitors and no others, and monitors that have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import watch as kubernetes_watch
from kubernetes.utils import create_from_dict

from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.rights import rights
from monitor_process import MonitorProcess

GROUP, VERSION, PLURAL = "enginehouse.dev", "v1alpha1", "enginereplicas"
ENGINE = {"model": {"uri": "file:///m"}}


class World:
    """A namespace with one replica and the rights of its monitors."""

    def __init__(self, api_client: kubernetes_client.ApiClient, namespace: str, folder: Path) -> None:
        self._client = api_client
        self.namespace = namespace
        self._folder = folder
        self._monitors: list[MonitorProcess] = []
        self.objects = kubernetes_client.CustomObjectsApi(api_client)
        self.uid = self.create("replica")
        for manifest in rights(Owner(kind="EngineReplica", name="replica", uid=self.uid, namespace=namespace, engine="engine")):
            del manifest["metadata"]["ownerReferences"]  # a test decides when they go
            create_from_dict(api_client, manifest)
        self.credentials = folder / "credentials"
        self.credentials.mkdir()
        request = kubernetes_client.AuthenticationV1TokenRequest(spec=kubernetes_client.V1TokenRequestSpec(audiences=[]))
        token = kubernetes_client.CoreV1Api(api_client).create_namespaced_service_account_token("replica", namespace, request)
        (self.credentials / "token").write_text(token.status.token)
        (self.credentials / "ca.crt").write_bytes(Path(api_client.configuration.ssl_ca_cert).read_bytes())

    def create(self, name: str) -> str:
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "EngineReplica",
            "metadata": {"name": name},
            "spec": {"index": 0, "epoch": 1, "engine": ENGINE},
        }
        made = self.objects.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        return str(made["metadata"]["uid"])

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)

    def get_host(self) -> str:
        return str(self._client.configuration.host)

    def get(self, name: str = "replica") -> dict[str, Any]:
        found: dict[str, Any] = self.objects.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        return found

    def row(self, name: str = "pod-0") -> dict[str, Any] | None:
        members = self.get().get("status", {}).get("members", [])
        return next((member for member in members if member["name"] == name), None)

    def monitor(self, member: str = "pod-0") -> MonitorProcess:
        server = urlsplit(self._client.configuration.host)
        made = MonitorProcess(
            self._folder,
            host=str(server.hostname),
            port=int(server.port or 443),
            credentials=self.credentials,
            namespace=self.namespace,
            replica="replica",
            replica_uid=self.uid,
            member=member,
        )
        self._monitors.append(made)
        return made

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.process.kill()
            monitor.process.wait()

    def statuses_allowed(self) -> dict[str, int]:
        """What the monitor's token may do, by asking."""
        configuration = kubernetes_client.Configuration()
        configuration.host = self._client.configuration.host
        configuration.ssl_ca_cert = str(self.credentials / "ca.crt")
        configuration.api_key = {"authorization": f"Bearer {(self.credentials / 'token').read_text()}"}
        with kubernetes_client.ApiClient(configuration) as client:
            objects = kubernetes_client.CustomObjectsApi(client)
            where = (GROUP, VERSION, self.namespace, PLURAL)
            attempts = {
                "read own replica": lambda: objects.list_namespaced_custom_object(*where, field_selector="metadata.name=replica"),
                "read another": lambda: objects.list_namespaced_custom_object(*where, field_selector="metadata.name=other"),
                "change own spec": lambda: objects.patch_namespaced_custom_object(
                    *where, "replica", {"metadata": {"labels": {"a": "b"}}}
                ),
                "change another's status": lambda: objects.patch_namespaced_custom_object_status(*where, "other", {"status": {}}),
                "read pods": lambda: kubernetes_client.CoreV1Api(client).list_namespaced_pod(self.namespace),
            }
            return {name: _status(attempt) for name, attempt in attempts.items()}


def _status(attempt: Any) -> int:
    try:
        attempt()
    except kubernetes_client.ApiException as error:
        return int(error.status)
    return 200


@pytest.fixture
def world(api_client: kubernetes_client.ApiClient, namespace: str, tmp_path: Path) -> Iterator[World]:
    made = World(api_client, namespace, tmp_path)
    yield made
    made.close()


def row_of(world: World, condition: Any) -> dict[str, Any]:
    """The row as soon as ``condition`` holds, seen through a watch."""
    stream = kubernetes_watch.Watch().stream(
        world.objects.list_namespaced_custom_object, GROUP, VERSION, world.namespace, PLURAL, timeout_seconds=30
    )
    for event in stream:
        for row in event["object"].get("status", {}).get("members", []):
            if row["name"] == "pod-0" and condition(row):
                return dict(row)
    raise AssertionError(json.dumps(world.get(), indent=1))
