"""What the API server's answers mean to the operator, and that every request is counted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from enginehouse_operator import kubernetes_client as client
from enginehouse_operator import metrics

WEBHOOK = 'Internal error occurred: failed calling webhook "pods.policy.example": connection refused'


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (403, "no", client.Forbidden),
        (422, "no", client.Invalid),
        (409, "no", client.Conflict),
        (404, "no", client.NotFound),
        (410, "the continue token has expired", client.Unavailable),
        (500, "etcdserver: request timed out", client.Unavailable),
        # Said once more in an hour it is still there: a person has to see it in a condition.
        (500, WEBHOOK, client.Forbidden),
    ],
)
def test_an_answer_that_is_no_success_becomes_an_error_of_its_class(
    status: int, message: str, error: type[client.ApiError]
) -> None:
    body = json.dumps({"kind": "Status", "reason": "R", "message": message}).encode()
    with pytest.raises(error) as raised:
        client._result("POST /pods", status, body)
    assert type(raised.value) is error
    assert raised.value.message == message


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"\xff"])
def test_an_answer_that_is_no_object_is_an_error_in_words(content: bytes) -> None:
    with pytest.raises(client.Unavailable):
        client._result("GET /pods", 502, content)


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}]
users: [{name: me, user: {token: t}}]
clusters:
- name: here
  cluster: {server: "https://10.96.0.1", %s}
"""


@pytest.mark.parametrize(("words", "proxy"), [("", None), ('proxy-url: "http://ours:3128"', "http://ours:3128")])
async def test_no_proxy_of_the_environment_comes_between_the_operator_and_the_api_server(
    words: str, proxy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf's watches take none either. NO_PROXY often names networks (10.96.0.0/12), which Python does not understand."""
    (tmp_path / "config").write_text(KUBECONFIG % words)
    monkeypatch.setattr(client.transport_config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.setenv("HTTPS_PROXY", "http://everybodys:3128")
    monkeypatch.setenv("NO_PROXY", "10.96.0.0/12,.svc")
    assert (await client.configure()).proxy == proxy


@contextlib.asynccontextmanager
async def served(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[client.KubernetesClient]:
    """A client of an API server that answers so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = client.transport.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with client.KubernetesClient(configuration) as found:
            yield found
    finally:
        await runner.cleanup()


@pytest.fixture
async def connected() -> AsyncIterator[client.KubernetesClient]:
    """To an API server that refuses to delete, does not know pods' statuses, and hangs up on whoever lists secrets."""

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/secrets"):
            assert request.transport is not None
            request.transport.abort()
        status = {"DELETE": 403, "PATCH": 404}.get(request.method, 200)
        return web.json_response({"items": [], "metadata": {}}, status=status)

    async with served(answer) as found:
        yield found


@pytest.mark.parametrize(
    "name",
    [
        "../../other/persistentvolumeclaims/theirs",
        "../pods?watch=true&timeoutSeconds=14",
        "theirs?watch=true",
        "theirs#",
        "..",
        ".",
        "",
        "%2e%2e/pods",
        "line\nfeed",
        "claim\n",
    ],
)
async def test_a_name_that_no_object_can_have_asks_for_nothing(connected: client.KubernetesClient, name: str) -> None:
    assert await connected.get(client.CLAIMS, "n", "models-0.of.team") is not None, "the server has whatever it is asked for"
    assert await connected.get(client.CLAIMS, "n", name) is None


async def test_every_request_is_counted_by_verb_kind_and_what_came_of_it(connected: client.KubernetesClient) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        (family,) = metrics.API_REQUESTS.collect()
        return {(found.labels["verb"], found.labels["kind"], found.labels["code"]): found.value for found in family.samples}

    metrics.API_REQUESTS.clear()
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u"}}
    await connected.get(client.PODS, "n", "p")
    await connected.list(client.PODS, "n")
    await connected.create(pod)
    await connected.create(pod, dry_run=True)
    await connected.replace(pod)
    for refused in (
        connected.delete(client.PODS, "n", "p", uid="u"),
        connected.list(client.SECRETS, "n"),
        connected.apply(pod),
        connected.apply_status(client.REPLICAS, pod, {}),
        connected.merge(client.PODS, "n", "p", uid="u", patch={}),
        connected.remove_from_status(client.REPLICAS, "n", "p", uid="u", path="/status/members/0", known={}),
    ):
        with pytest.raises(client.ApiError):
            await refused
    answered = {("get", "pods"), ("list", "pods"), ("create", "pods"), ("try", "pods"), ("update", "pods")}
    unknown = {("apply", "pods"), ("apply", "enginereplicas/status"), ("patch", "pods"), ("patch", "enginereplicas/status")}
    expected = {(*what, "200") for what in answered} | {(*what, "404") for what in unknown}
    assert counted() == dict.fromkeys(expected | {("delete", "pods", "403"), ("list", "secrets", "0")}, 1.0)


async def test_an_apply_is_yaml_whatever_characters_are_in_it() -> None:
    received = []

    async def answer(request: web.Request) -> web.Response:
        received.append((request.content_type, yaml.safe_load(await request.read())))
        return web.json_response({})

    status = {"lastFailure": {"message": "died of \x7f and 🤗"}}
    seen = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}}
    async with served(answer) as connected:
        await connected.apply_status(client.PODS, seen, status)
    assert received == [("application/apply-patch+yaml", seen | {"status": status})]
