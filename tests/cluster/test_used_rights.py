"""The last word on rights, over the audit log of everything that the tests of this folder have done with the installed chart.

Of what operator and monitors asked for, all was granted by their own rules; and of a monitor's rights none is left over. That the
operator has none too many is shown where its whole life is played: `tests/api/operator/test_rights.py`.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml

import simulated_engine
from audit_log import whole_lines
from enginehouse_operator import names
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.rights import rights
from localkube.installation import CHART, SYSTEM_NAMESPACE
from used_rights import Request, not_granted, requests, unused

pytestmark = pytest.mark.cluster

OPERATOR = f"system:serviceaccount:{SYSTEM_NAMESPACE}:enginehouse-operator"


def _account(namespace: str, name: str) -> str:
    return f"system:serviceaccount:{namespace}:{name}"


def _rules(helm: str) -> list[dict[str, Any]]:
    """Of all roles of the chart, as it is installed for these tests."""
    command = [helm, "template", "enginehouse", str(CHART), "--namespace", SYSTEM_NAMESPACE, "--kube-version=v1.34.0"]
    command += ["--set", "rbac.aggregate=false"]  # roles for people
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kinds = ("Role", "ClusterRole")
    return [rule for found in yaml.safe_load_all(rendered) if found and found["kind"] in kinds for rule in found["rules"]]


def test_nobody_asked_for_more_than_was_granted_and_monitors_use_all_they_have(space: Any) -> None:
    running = space.installation.cluster
    if running.audit_log is None:
        pytest.skip("KUBECONFIG names the cluster: its audit log is not here")
    # So that there is a life to look at, also when this test runs alone.
    space.apply(simulated_engine.manifest())
    space.wait("Ready", name="sim")
    asked: dict[str, list[Request]] = {}
    for request in requests(whole_lines(running.audit_log)):
        asked.setdefault(request.user, []).append(request)
    assert asked.get(OPERATOR), f"the operator acts as {OPERATOR}"
    assert not_granted(asked[OPERATOR], _rules(str(running.binaries / "helm"))) == []
    accounts = {(made.namespace, made.name) for made in asked[OPERATOR] if made.right.resource == "serviceaccounts" and made.name}
    used = []
    for namespace, replica in sorted(accounts):
        owner = Owner(kind=names.REPLICA_KIND, name=replica, uid="", namespace=namespace, engine="")
        rules = rights(owner)[1]["rules"]
        own = asked.get(_account(namespace, replica), [])
        assert not_granted(own, rules) == [], f"the monitors of {namespace}/{replica}"
        used += own
    assert used, "monitors have written rows"
    assert unused(used, rules, exceptions={}) == []
