"""What the monitor is told, and by whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse_operator.monitor.__main__ import settings
from enginehouse_operator.monitor.connection import Access

ARGUMENTS = ["--socket=/run/enginehouse/monitor.sock", "--namespace=n", "--replica=r", "--replica-uid=u", "--member=pod-0"]
ENVIRONMENT = {"POD_UID": "pu", "POD_IP": "10.0.0.7", "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_arguments_and_environment_are_enough() -> None:
    found = settings(ARGUMENTS, ENVIRONMENT)
    assert (found.namespace, found.replica, found.replica_uid, found.member, found.pod_uid) == ("n", "r", "u", "pod-0", "pu")
    folder = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    assert found.access == Access(host="10.96.0.1", port=443, token_file=folder / "token", ca_file=folder / "ca.crt")


@pytest.mark.parametrize("missing", sorted(ENVIRONMENT))
def test_what_the_kubelet_did_not_set_is_named(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings(ARGUMENTS, {**ENVIRONMENT, missing: ""})
    assert f"the environment lacks {missing};" in capsys.readouterr().err
