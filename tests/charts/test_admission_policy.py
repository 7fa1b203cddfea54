"""The admission policy on the real API server: a monitor's token writes its own row and nothing else; nobody else notices.

The one job: the chart's policy, bound to the namespace of one test, and tokens as kubelets ask for them.
Not done here: monitors as processes (`tests/cluster` installs the policy with the chart).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client as kubernetes_client

from enginehouse_operator.monitor.api import Rejected, RowApi
from enginehouse_operator.monitor.connection import Access
from enginehouse_operator.monitor.row import Row
from localkube import cluster
from monitored_replica import GROUP, PLURAL, VERSION, World
from rendered_chart import Render, of_kind

pytestmark = pytest.mark.api

DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.1
CONDITION = {
    "type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
}  # fmt: skip


class Confined:
    """A replica whose monitors' pods are `pod-0` and `pod-1`; nothing runs in them."""

    def __init__(self, world: World, api_client: kubernetes_client.ApiClient, folder: Path) -> None:
        self.world = world
        self._client = api_client
        self._core = kubernetes_client.CoreV1Api(api_client)
        self._folder = folder
        self.rows = {name: self._pod(name) for name in ("pod-0", "pod-1")}
        self.tokens = {name: self.token("replica", pod=row) for name, row in self.rows.items()}
        self.tokens["no pod"] = world.credentials / "token"

    def _pod(self, name: str) -> Row:
        spec = {"serviceAccountName": "replica", "containers": [{"name": "engine", "image": "e"}]}
        made = self._core.create_namespaced_pod(self.world.namespace, {"metadata": {"name": name}, "spec": spec})
        return Row(name=name, uid=made.metadata.uid, address="10.0.0.1")

    def token(self, account: str, *, pod: Row | None = None) -> Path:
        """As the kubelet asks for that of a projected volume."""
        bound = {} if pod is None else {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod.name, "uid": pod.uid}}
        request = {"spec": {"audiences": [], **bound}}
        answer = self._core.create_namespaced_service_account_token(account, self.world.namespace, request)
        path = self._folder / f"token-{account}-{pod.name if pod else ''}"
        path.write_text(answer.status.token)
        return path

    def monitor(self, who: str) -> RowApi:
        """The real monitor's way to the API."""
        server = urlsplit(self._client.configuration.host)
        access = Access(
            host=str(server.hostname),
            port=int(server.port or 443),
            token_file=self.tokens[who],
            ca_file=self.world.credentials / "ca.crt",
        )
        return RowApi(
            access=access, namespace=self.world.namespace, replica="replica", replica_uid=self.world.uid, field_manager=who
        )

    def patch(self, who: str, status: object, *, dry_run: bool = False, manager: str | None = None) -> tuple[int, str]:
        """Status code and words. With a manager by server-side apply, else by merge."""
        configuration = kubernetes_client.Configuration()
        configuration.host = self._client.configuration.host
        configuration.ssl_ca_cert = str(self.world.credentials / "ca.crt")
        configuration.api_key = {"authorization": f"Bearer {self.tokens[who].read_text()}"}
        query = [("dryRun", "All")] if dry_run else []
        query += [("fieldManager", manager), ("force", "true")] if manager else []
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "EngineReplica", "metadata": {"name": "replica"}, "status": status}
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.world.namespace}/{PLURAL}/replica/status"
        with kubernetes_client.ApiClient(configuration) as client:
            answer = client.call_api(
                *client.param_serialize(
                    "PATCH",
                    path,
                    query_params=query,
                    header_params={
                        "Content-Type": f"application/{'apply-patch+yaml' if manager else 'merge-patch+json'}",
                        "Accept": "application/json",
                    },
                    body=body,
                    auth_settings=["BearerToken"],
                )
            )
            return answer.status, answer.read().decode()

    def set_status(self, status: dict[str, Any]) -> None:
        """As the administrator, by merge."""
        where = (GROUP, VERSION, self.world.namespace, PLURAL, "replica")
        self.world.objects.patch_namespaced_custom_object_status(*where, {"status": status})

    def until(self, what: Any, *, saying: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not what():
            assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {saying}"
            time.sleep(POLL_SECONDS)


@pytest.fixture
def policy(render: Render, api_cluster: cluster.Cluster, namespace: str) -> Iterator[str]:
    """Name of the chart's policy, made for this namespace alone: others share the API server."""
    (found,) = of_kind(render(), "ValidatingAdmissionPolicy")
    (binding,) = of_kind(render(), "ValidatingAdmissionPolicyBinding")
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    binding["spec"]["matchResources"] = {"namespaceSelector": here}
    for manifest in (found, binding):
        api_cluster.kubectl("create", "-f-", stdin=json.dumps(manifest))
    name: str = found["metadata"]["name"]
    yield name
    for manifest in (binding, found):
        api_cluster.kubectl("delete", manifest["kind"], name)


@pytest.fixture
def confined(policy: str, api_client: kubernetes_client.ApiClient, namespace: str, tmp_path: Path) -> Iterator[Confined]:
    """From the moment on in which the policy holds."""
    world = World(api_client, namespace, tmp_path)
    made = Confined(world, api_client, tmp_path)
    made.until(lambda: made.patch("pod-0", {"observedGeneration": 7}, dry_run=True)[0] == 422, saying="the policy holds")
    yield made
    world.close()


def written(confined: Confined) -> dict[str, Any]:
    found: dict[str, Any] = confined.world.get().get("status", {})
    return found


def test_a_monitor_writes_changes_and_takes_back_its_row_beside_another(confined: Confined) -> None:
    first, second = confined.monitor("pod-0"), confined.monitor("pod-1")
    version = confined.world.get()["metadata"]["resourceVersion"]
    first.apply(confined.rows["pod-0"], resource_version=version)
    second.apply(confined.rows["pod-1"], resource_version=None)
    first.apply(replace(confined.rows["pod-0"], state="Serving", failures=({"class": "Signal"},)), resource_version=None)
    states = [(row["name"], row["state"]) for row in written(confined)["members"]]
    assert states == [("pod-0", "Serving"), ("pod-1", "Starting")]
    assert confined.patch("pod-0", {"members": []}, manager="pod-0")[0] == 200
    assert [row["name"] for row in written(confined)["members"]] == ["pod-1"]
    assert confined.patch("pod-1", {"members": []}, manager="pod-1")[0] == 200


def test_a_monitor_writes_nothing_else(confined: Confined) -> None:
    own, other = confined.rows["pod-0"], confined.rows["pod-1"]
    confined.monitor("pod-0").apply(own, resource_version=None)
    confined.monitor("pod-1").apply(other, resource_version=None)
    confined.set_status({"observedGeneration": 1, "conditions": [CONDITION]})
    before = written(confined)

    row, not_ready = own.fields(), CONDITION | {"status": "False"}
    changes: dict[str, tuple[object, str | None]] = {
        "another's row": ({"members": [row, replace(other, state="Serving").fields()]}, "pod-0"),
        "another's row, gone": ({"members": []}, "pod-1"),
        "a row of nobody": ({"members": [row, {"name": "pod-9", "uid": "u"}]}, "pod-0"),
        "its row for another pod's UID": ({"members": [row | {"uid": "another"}]}, "pod-0"),
        "all rows, gone": ({"members": None}, None),
        "a condition": ({"conditions": [not_ready]}, None),
        "a condition beside its row": ({"members": [row | {"state": "Serving"}], "conditions": [not_ready]}, "pod-0"),
        "no conditions": ({"conditions": None}, None),
        "the generation": ({"observedGeneration": 2}, None),
        "nothing left": (None, None),
    }
    said = {what: confined.patch("pod-0", change, manager=manager) for what, (change, manager) in changes.items()}
    unexpected = {what: answer for what, answer in said.items() if answer[0] != 422 or "a monitor changes" not in answer[1]}
    assert unexpected == {}
    assert written(confined) == before
    with pytest.raises(Rejected, match="a monitor changes its own row alone"):
        confined.monitor("no pod").apply(replace(own, state="Serving"), resource_version=None)


def test_a_monitor_owns_no_row_but_its_own(confined: Confined) -> None:
    own, other = confined.rows["pod-0"], replace(confined.rows["pod-1"], ranks=({"rank": 1, "state": "Dead"},))
    confined.monitor("pod-0").apply(own, resource_version=None)
    confined.monitor("pod-1").apply(other, resource_version=None)
    both = {"members": [own.fields(), other.fields()]}
    # The other would then take a row that is not its own away with its next write, which is denied: it could say no more.
    as_the_other = confined.patch("pod-0", both, manager="pod-1")
    # What two have applied stays when one leaves it out.
    beside_the_other = confined.patch("pod-0", both, manager="pod-0")
    assert confined.patch("pod-0", {"members": []}, manager="pod-0")[0] == 200
    confined.monitor("pod-1").apply(replace(other, state="Serving", ranks=()), resource_version=None)
    (left,) = written(confined)["members"]
    assert (left["name"], left["state"], left.get("ranks") or []) == ("pod-1", "Serving", [])
    for code, words in (as_the_other, beside_the_other):
        assert (code, "a monitor writes as the manager" in words) == (422, True)


def test_a_row_that_another_pod_of_the_name_has_is_not_touched(confined: Confined) -> None:
    rows = [{"name": "pod-0", "uid": "of the one before", "state": "Failed"}]
    confined.set_status({"members": rows})
    with pytest.raises(Rejected, match="a monitor changes its own row alone"):
        confined.monitor("pod-0").apply(confined.rows["pod-0"], resource_version=None)
    assert written(confined) == {"members": rows}


def test_the_operator_and_people_write_what_rbac_lets_them(
    confined: Confined, render: Render, api_cluster: cluster.Cluster
) -> None:
    namespace = confined.world.namespace
    for found in of_kind(render(watchNamespace=namespace), "ServiceAccount", "Role", "RoleBinding"):
        api_cluster.kubectl("-n", namespace, "create", "-f-", stdin=json.dumps(found))
    confined.tokens["operator"] = confined.token("enginehouse-operator")
    full = {"conditions": [CONDITION], "members": [{"name": "pod-7", "uid": "u", "state": "Serving"}]}
    empty: dict[str, Any] = {"conditions": [], "members": []}
    for status in (full, empty):
        confined.set_status(status)
        assert written(confined) == status
    for status in (full, empty):
        assert confined.patch("operator", status)[0] == 200
        assert written(confined) == status


def test_the_largest_replica_is_within_what_an_expression_may_cost(confined: Confined) -> None:
    failure = {"role": "engine-core", "rank": 1, "class": "Signal", "message": "killed " * 20, "detectedBy": "Pipe"}
    ranks = [{"rank": rank, "incarnation": 1, "state": "Serving", "maxContextLength": 8192} for rank in range(64)]
    full = {"state": "Serving", "address": "10.0.0.1", "ranks": ranks, "failures": [failure] * 8}
    rows = [{"name": f"other-{number}", "uid": f"u-{number}", **full} for number in range(63)]
    confined.set_status({"members": rows})
    confined.monitor("pod-0").apply(replace(confined.rows["pod-0"], ranks=tuple(ranks)), resource_version=None)
    assert len(written(confined)["members"]) == 64
    assert confined.patch("pod-0", {"members": rows[1:]})[0] == 422
