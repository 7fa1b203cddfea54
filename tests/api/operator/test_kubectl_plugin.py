"""``kubectl enginehouse`` as a user runs it, on engines that a real operator process works for."""

from __future__ import annotations

import json

import pytest
from kubernetes import client as kubernetes_client
from scripted_kubelet import failure, words
from stage import Raw, Stage
from test_disruptions import allows, of_replica

from kubectl_plugin import Plugin

pytestmark = pytest.mark.api


def engine_of(pod: Raw) -> str:
    return str(pod["metadata"]["labels"]["enginehouse.dev/engine"])


def test_a_served_engine_is_shown_and_drained_as_far_as_its_disruption_budget_allows(stage: Stage, plugin: Plugin) -> None:
    stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True")
    stage.until(allows(stage, 1), saying="one pod may be evicted")
    first, second = stage.replicas()
    (pod,) = of_replica(stage, 0)

    shown = plugin.run("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[1][:4] == ["engine/one", "True", "AllReplicasServe", "8192"]
    assert lines[2][:4] == [f"├─replica/{first['metadata']['name']}", "True", "Serving", "8192"]
    assert lines[3][1:4] == [f"└─pod/{pod['metadata']['name']}", "True", "Serving"]
    assert lines[4][1:5] == ["└─rank", "0", "Serving", "8192"]
    assert "\x1b" not in shown.stdout, "colours are for terminals"
    (engine,) = json.loads(plugin.run("status", "one", "-o", "json").stdout)["engines"]
    assert [replica["members"][0]["ranks"][0]["maxContextLength"] for replica in engine["replicas"]] == [8192, 8192]

    well = plugin.run("why", "one")
    assert (well.returncode, well.stdout) == (0, "one is Ready: 2 of 2 replicas serve (AllReplicasServe)\n")

    known = {found["metadata"]["uid"] for found in stage.pods()}
    stage.kubelet.fate = lambda found: "serve" if found["metadata"]["uid"] in known else "hold"
    stage.kubelet.lingers = lambda _: True
    drained = plugin.run("drain", first["metadata"]["name"])
    assert (drained.returncode, drained.stderr) == (0, "")
    assert f"pod {pod['metadata']['name']} is evicted" in drained.stdout
    stage.until(lambda: "end" in stage.replicas()[0]["spec"], saying="the replica ends")
    assert stage.replicas()[0]["spec"]["end"]["reason"] == "MemberRemoved"
    again = plugin.run("drain", pod["metadata"]["name"])
    assert (again.returncode, "on its way out already" in again.stdout) == (0, True)
    refused = plugin.run("drain", second["metadata"]["name"])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "budget one-members wants 1 ready pods of engine one, and there are 1" in refused.stderr
    assert "end" not in next(raw for raw in stage.replicas() if raw["metadata"]["uid"] == second["metadata"]["uid"])["spec"]

    for arguments in (("why", "nobody"), ("status", "nobody"), ("drain", "nobody"), ("logs", "nobody")):
        missing = plugin.run(*arguments)
        assert (missing.returncode, missing.stdout) == (2, "")
        assert "there is no" in missing.stderr


def test_broken_engines_are_explained_from_what_the_operator_and_the_kubelet_wrote(stage: Stage, plugin: Plugin) -> None:
    core = kubernetes_client.CoreV1Api(stage.api)
    fates = {"small": "refuse", "hung": "serve"}
    stage.kubelet.fate = lambda pod: fates.get(engine_of(pod), "hold")
    stage.operator()
    for name in ("small", "hung", "missing"):
        stage.apply(name)
    stage.apply("large", resources={"limits": {"nvidia.com/gpu": 64}})
    stage.apply("secret", auth={"apiKeySecretRef": {"name": "keys", "key": "k"}})
    for name in ("large", "secret", "missing"):
        stage.until(lambda name=name: name in {engine_of(pod) for pod in stage.pods()}, saying=f"a pod of {name}")
    stage.until_condition("Ready", "True", name="hung")
    found = {engine_of(pod): pod for pod in stage.pods()}
    pods = {name: pod["metadata"] for name, pod in found.items()}
    stage.kubelet.end(found["missing"], exit_code=78, words=words("ModelNotFound", "file:///models/m does not exist"))
    hang = failure(**{"class": "Hang", "rank": 0, "message": "engine core of rank 0 has computed no step for 120 s"})
    stage.kubelet.tell(found["hung"], rank_0="Restarting", incarnation=2, failures=[hang])
    scheduler = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": scheduler}
    core.patch_namespaced_pod_status(pods["large"]["name"], stage.namespace, {"status": {"conditions": [condition]}})
    waits = 'MountVolume.SetUp failed for volume "api-key" : secret "keys" not found'
    about = {"kind": "Pod", "apiVersion": "v1", "namespace": stage.namespace}
    about |= {key: pods["secret"][key] for key in ("name", "uid")}
    event = {"metadata": {"name": "e"}, "involvedObject": about, "type": "Warning", "reason": "FailedMount", "message": waits}
    core.create_namespaced_event(stage.namespace, event)
    stage.until_condition("Stalled", "True", "ContextTooSmall", name="small")
    stage.until_condition("Ready", "False", "Unschedulable", name="large")
    stage.until_condition("Ready", "False", "Starting", name="secret")
    stage.until_condition("Stalled", "True", "ModelNotFound", name="missing")
    stage.until_condition("Ready", "False", "RankRestarting", name="hung")

    small = plugin.why("small")
    assert "only 100 tokens fit, 2048 are asked for" in small
    assert "lower spec.context.minLength" in small
    missing = plugin.why("missing")
    assert "file:///models/m does not exist" in missing
    assert "Correct spec.model.uri" in missing
    hung = plugin.why("hung")
    assert "has computed no step for 120 s" in hung
    assert "raise spec.hang.stallSeconds" in hung
    large = plugin.run("why", "large", "-o", "json")
    assert large.returncode == 1
    (finding,) = json.loads(large.stdout)["findings"]
    assert (finding["reason"], scheduler in finding["message"]) == ("Unschedulable", True)
    assert finding["nextStep"]["command"] == "kubectl describe nodes"
    assert 'secret "keys" not found' in plugin.why("secret")
