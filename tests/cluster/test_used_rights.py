"""The last word on rights, over the audit log of everything that the tests of this folder have done with the installed chart.

Of what operator and monitors asked for, all was granted by their own rules and nothing was refused; and of a monitor's rights none
is left over, nor of the operator's when all files of this folder are run (`tests/api/operator/test_rights.py` plays its whole life
on an API server alone).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import simulated_engine
from audit_log import whole_lines
from enginehouse_operator import names
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.rights import rights
from localkube.installation import CHART, SYSTEM_NAMESPACE
from used_rights import ASKED_BY_ADMISSION, Request, not_granted, refused, requests, unused

pytestmark = pytest.mark.cluster

OPERATOR = f"system:serviceaccount:{SYSTEM_NAMESPACE}:enginehouse-operator"


NOT_IN_EACH_RUN = {"test_soak.py"}
"""It is slow."""


def _account(namespace: str, name: str) -> str:
    return f"system:serviceaccount:{namespace}:{name}"


def _rules(helm: str) -> list[dict[str, Any]]:
    """Of all roles of the chart, as it is installed for these tests."""
    command = [helm, "template", "enginehouse", str(CHART), "--namespace", SYSTEM_NAMESPACE, "--kube-version=v1.34.0"]
    command += ["--set", "rbac.aggregate=false"]  # roles for people
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kinds = ("Role", "ClusterRole")
    return [rule for found in yaml.safe_load_all(rendered) if found and found["kind"] in kinds for rule in found["rules"]]


def _whole_folder(request: pytest.FixtureRequest) -> bool:
    run = {item.path for item in request.session.items}
    return all(path in run or path.name in NOT_IN_EACH_RUN for path in Path(__file__).parent.glob("test_*.py"))


def test_nobody_asked_for_more_than_was_granted_and_monitors_use_all_they_have(space: Any, request: pytest.FixtureRequest) -> None:
    running = space.installation.cluster
    if running.audit_log is None:
        pytest.skip("KUBECONFIG names the cluster: its audit log is not here")
    # So that there is a life to look at, also when this test runs alone: a whole one, since a watch is in the log when it ends.
    space.apply(simulated_engine.manifest())
    space.wait("Ready", name="sim")
    space.kubectl("delete", "ie/sim", "--wait=false")
    space.eventually("its pods are gone", lambda: not space.items("pods"), seconds=60)
    log = list(requests(whole_lines(running.audit_log)))
    asked: dict[str, list[Request]] = {}
    for found in log:
        asked.setdefault(found.user, []).append(found)
    assert asked.get(OPERATOR), f"the operator acts as {OPERATOR}"
    installed = _rules(str(running.binaries / "helm"))
    assert not_granted(asked[OPERATOR], installed) == []
    if _whole_folder(request):
        assert unused(asked[OPERATOR], installed, exceptions=ASKED_BY_ADMISSION) == []
    accounts = {(made.namespace, made.name) for made in asked[OPERATOR] if made.right.resource == "serviceaccounts" and made.name}
    used = []
    for namespace, replica in sorted(accounts):
        owner = Owner(kind=names.REPLICA_KIND, name=replica, uid="", namespace=namespace, engine="")
        rules = rights(owner)[1]["rules"]
        own = asked.get(_account(namespace, replica), [])
        assert not_granted(own, rules) == [], f"the monitors of {namespace}/{replica}"
        used += own
    assert used, "monitors have written rows"
    assert refused(log, of={OPERATOR, *(_account(*account) for account in accounts)}) == []
    assert unused(used, rules, exceptions={}) == []
