"""The monitor on the real API server, with the rights that the operator gives it and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import watch as kubernetes_watch
from kubernetes.utils import create_from_dict

from enginehouse_operator.monitor.api import Access, Conflict, ReplicaApi
from enginehouse_operator.monitor.row import Row
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.rights import rights
from monitor_process import MonitorProcess

pytestmark = pytest.mark.api

GROUP, VERSION, PLURAL = "enginehouse.dev", "v1alpha1", "enginereplicas"
ENGINE = {"model": {"uri": "file:///m"}}


class World:
    """A namespace with one replica and the rights of its monitors."""

    def __init__(self, api_client: kubernetes_client.ApiClient, namespace: str, folder: Path) -> None:
        self._client = api_client
        self.namespace = namespace
        self._folder = folder
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

    def monitor(self, *, replica: str = "replica", replica_uid: str | None = None) -> MonitorProcess:
        server = urlsplit(self._client.configuration.host)
        return MonitorProcess(
            self._folder,
            host=str(server.hostname),
            port=int(server.port or 443),
            credentials=self.credentials,
            namespace=self.namespace,
            replica=replica,
            replica_uid=replica_uid or self.uid,
        )

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
                "read own replica": lambda: objects.get_namespaced_custom_object(*where, "replica"),
                "read another": lambda: objects.get_namespaced_custom_object(*where, "other"),
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
def world(api_client: kubernetes_client.ApiClient, namespace: str, tmp_path: Path) -> World:
    return World(api_client, namespace, tmp_path)


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


def test_the_row_is_born_and_changes_beside_other_rows_and_the_operators_status(world: World) -> None:
    status = {"conditions": [], "members": [{"name": "pod-1", "uid": "other", "state": "Serving"}], "observedGeneration": 1}
    world.objects.patch_namespaced_custom_object_status(GROUP, VERSION, world.namespace, PLURAL, "replica", {"status": status})
    monitor = world.monitor()
    launcher = monitor.launcher()
    assert launcher.hear() == {"type": "stored"}
    born = world.row()
    assert born == {"name": "pod-0", "uid": "pod-uid", "state": "Starting", "address": "10.0.0.7", "ranks": [], "failures": []}
    launcher.state("Serving", maxContextLength=8192, kvBlocks=1024)
    launcher.exited(planned=False)
    row = row_of(world, lambda row: row["state"] == "Serving" and row["failures"])
    assert row["ranks"] == [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 8192, "kvBlocks": 1024}]
    assert row["failures"][0]["class"] == "Signal"
    found = world.get()
    assert found["status"]["observedGeneration"] == 1
    assert world.row("pod-1") == {"name": "pod-1", "uid": "other", "state": "Serving"}
    managers = {entry["manager"] for entry in found["metadata"]["managedFields"] if entry["operation"] == "Apply"}
    assert managers == {"pod-0"}
    assert monitor.terminate() == 0
    monitor = world.monitor()
    assert monitor.launcher().hear() == {"type": "stored"}
    assert monitor.terminate() == 0
    assert world.get()["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"], "a restart writes nothing"
    launcher.close()


def test_a_dropped_rank_leaves_the_row(world: World) -> None:
    monitor = world.monitor()
    launcher = monitor.launcher()
    launcher.hear()
    launcher.state("Serving")
    row_of(world, lambda row: row["ranks"])
    launcher.say({"type": "state", "state": "Ended", "ranks": []})
    assert not row_of(world, lambda row: row["state"] == "Ended").get("ranks")
    assert monitor.terminate() == 0


def test_a_row_of_another_pod_is_not_touched(world: World) -> None:
    other = {"name": "pod-0", "uid": "another", "state": "Serving"}
    world.objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, world.namespace, PLURAL, "replica", {"status": {"members": [other]}}
    )
    monitor = world.monitor()
    assert monitor.process.wait(30) == 1
    assert world.row() == other


def test_a_row_is_not_born_in_a_replica_that_changed_since_it_was_read(world: World) -> None:
    server = urlsplit(world.get_host())
    access = Access(
        host=str(server.hostname),
        port=int(server.port or 443),
        token_file=world.credentials / "token",
        ca_file=world.credentials / "ca.crt",
    )
    api = ReplicaApi(access=access, namespace=world.namespace, replica="replica", replica_uid=world.uid, field_manager="pod-0")
    version = api.read()["metadata"]["resourceVersion"]
    status = {"status": {"observedGeneration": 1}}
    world.objects.patch_namespaced_custom_object_status(GROUP, VERSION, world.namespace, PLURAL, "replica", status)
    row = Row(name="pod-0", uid="pod-uid", address="10.0.0.7")
    with pytest.raises(Conflict):
        api.apply(row, resource_version=version)
    assert world.row() is None
    api.apply(row, resource_version=api.read()["metadata"]["resourceVersion"])
    assert world.row() is not None
    api.close()


def test_a_successor_of_the_same_name_is_never_written_to(world: World) -> None:
    monitor = world.monitor()
    launcher = monitor.launcher()
    launcher.hear()
    world.delete("replica")
    successor = world.create("replica")
    assert successor != world.uid
    launcher.state("Serving")
    assert launcher.hear() == {"type": "abort", "ranks": [0]}
    assert world.row() is None
    monitor.process.kill()
    monitor.process.wait()
    assert world.monitor().process.wait(30) == 1


def test_the_right_is_for_one_replicas_status_and_nothing_else(world: World) -> None:
    world.create("other")
    assert world.statuses_allowed() == {
        "read own replica": 200,
        "read another": 403,
        "change own spec": 403,
        "change another's status": 403,
        "read pods": 403,
    }
