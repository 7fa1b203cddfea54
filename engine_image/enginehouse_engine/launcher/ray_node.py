"""Command line and environment of Ray in one pod. Pure.

Invariants: only ports that are named here are used, so that a network policy can name them; no secret of this pod's environment
gets to Ray, since every actor inherits what its raylet has; what all pods must agree on is set, whatever is inherited.
Does not start anything: ``ray_cluster.py`` does.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from enginehouse_engine.launcher.command_lines import HOLDS_WEIGHTS

LOOPBACK: Final = "127.0.0.1"
"""Of a leader to whom nobody comes."""
HEAD_PORT: Final = 6379
_PORTS: Final = {
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "runtime-env-agent-port": 6382,
    "min-worker-port": 20000,
    "max-worker-port": 20099,
}
OBJECT_STORE_BYTES: Final = 78643200
"""The smallest that Ray takes: nothing of ours goes through its object store."""
MEMBER_LABEL: Final = "enginehouse.dev/member"
ACCELERATOR: Final = "accelerator"
"""What a worker takes one of where there is no GPU."""
RUN_DIRECTORY: Final = "ENGINEHOUSE_RUN_DIRECTORY"
"""How an actor finds its own pod's launcher: it inherits this from the raylet of its pod, whoever created it."""

_SECRET: Final = re.compile(
    # The end of a word says it; of the short ones only the whole word.
    r"((TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|KEY)S?|(^|_)(SSH)?PASS|(^|_)(AUTH|PAT|CONNECTION_STRING)|_PWD)(_|$)"
)
_HEAD: Final = {
    # With Ray's defaults a node that vanished without a goodbye is missed after 14 to 30 seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_ALL: Final = {
    # A raylet that is asked to stop would wait for its actors, which their launcher ends.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would kill an actor at 95 % of the container's memory; the kernel kills at all of it, and says so.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray would have its actors wait for everybody else on the machine (15), in each of their steps.
    "RAY_worker_niceness": "0",
    # Files of a raylet's or an actor's log are kept to two of 1 MiB.
    "RAY_ROTATION_MAX_BYTES": "1048576",
    "RAY_ROTATION_BACKUP_COUNT": "1",
}


def command_line(*, member: int, address: str, head: str, workers: int, gpus: bool, name: str, directory: Path) -> list[str]:
    """``argv`` of ``ray start``. ``address`` is this pod's, ``head`` the leader's with its port; ``name`` is this pod's."""
    role = ["--head", f"--port={HEAD_PORT}", "--include-dashboard=false", "--no-monitor"] if not member else [f"--address={head}"]
    resources = [f"--num-gpus={workers}"] if gpus else ["--num-gpus=0", f"--resources={json.dumps({ACCELERATOR: workers})}"]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *role,
        *("--include-log-monitor=false", "--disable-usage-stats", "--log-style=record", "--num-cpus=1"),
        f"--node-ip-address={address}",
        f"--node-name={name}",
        f"--labels={MEMBER_LABEL}={member}",
        *resources,
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={directory}",
        *(f"--{flag}={port}" for flag, port in _PORTS.items()),
    ]


def environment(inherited: Mapping[str, str], *, run_directory: Path, token_file: Path | None, is_head: bool) -> dict[str, str]:
    """What the launcher has, without secrets, and what all pods of the replica must agree on."""
    kept = {name: value for name, value in inherited.items() if not is_secret(name) and not _is_of_another_cluster(name)}
    token = {"RAY_AUTH_MODE": "disabled"}
    if token_file is not None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return {**HOLDS_WEIGHTS, **kept, **_ALL, **(_HEAD if is_head else {}), **token, RUN_DIRECTORY: str(run_directory)}


def is_secret(name: str) -> bool:
    """By its name: there is no other way to tell."""
    return _SECRET.search(name.upper()) is not None


def _is_of_another_cluster(name: str) -> bool:
    return name in ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR")
