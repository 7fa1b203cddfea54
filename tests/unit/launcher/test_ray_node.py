"""What Ray is started with in a pod: its flags, and what of the pod's environment it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.launcher import ray_node

PLACE: dict[str, Any] = {"workers": 2, "gpus": False, "name": "pod-a", "directory": Path("/run/r")}


def test_the_leader_is_the_head_and_has_neither_a_dashboard_nor_a_monitor() -> None:
    argv = ray_node.command_line(member=0, address="10.0.0.1", head="", **PLACE)
    assert argv[1:5] == ["-m", "ray.scripts.scripts", "start", "--head"]
    assert {"--port=6379", "--include-dashboard=false", "--no-monitor", "--include-log-monitor=false"} <= set(argv)
    assert {"--node-ip-address=10.0.0.1", "--labels=enginehouse.dev/member=0", "--node-name=pod-a", "--temp-dir=/run/r"} <= set(
        argv
    )
    assert not any(flag.startswith("--address") or flag == "--block" for flag in argv)


def test_another_member_joins_the_head_and_says_which_it_is() -> None:
    argv = ray_node.command_line(member=2, address="10.0.0.3", head="10.0.0.1:6379", **PLACE)
    assert {"--address=10.0.0.1:6379", "--labels=enginehouse.dev/member=2", "--node-ip-address=10.0.0.3"} <= set(argv)
    assert "--head" not in argv


@pytest.mark.parametrize(
    ("gpus", "wanted"), [(False, ["--num-gpus=0", '--resources={"accelerator": 2}']), (True, ["--num-gpus=2"])]
)
def test_a_pod_offers_as_many_accelerators_as_it_has_workers(gpus: bool, wanted: list[str]) -> None:
    argv = ray_node.command_line(member=0, address="10.0.0.1", head="", **{**PLACE, "gpus": gpus})
    assert [flag for flag in argv if flag.startswith(("--num-gpus", "--resources"))] == wanted


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "ENGINE_APIKEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("RAY_AUTH_TOKEN", "DB_PASSWORD", "GOOGLE_APPLICATION_CREDENTIALS", "my_secret", "SSH_PRIVATE_KEY", "TOKENS"),
        *(
            "PGPASSWORD",
            "MYSQL_PWD",
            "NPM_AUTHTOKEN",
            "GITHUB_PAT",
            "REDIS_AUTH",
            "DOCKER_AUTH_CONFIG",
            "WANDB_KEY",
            "ENCRYPTION_KEYS",
        ),
        *("AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AWS_ACCESS_KEY_ID", "SSHPASS", "CLIENT_SECRET", "OPENAIKEY"),
    ],
)
def test_a_secret_does_not_get_to_ray(name: str) -> None:
    assert name not in ray_node.environment({name: "x"}, run_directory=Path("/run"), token_file=None, is_head=True)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "LD_LIBRARY_PATH",
        "HF_ENDPOINT",
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "NCCL_DEBUG",
        "PWD",
        "OLDPWD",
        "PYTHONPATH",
        "AUTHOR",
    ],
)
def test_what_is_no_secret_does(name: str) -> None:
    assert ray_node.environment({name: "x"}, run_directory=Path("/run"), token_file=None, is_head=False)[name] == "x"


def test_what_all_pods_must_agree_on_is_set_whatever_is_inherited() -> None:
    inherited = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/old", "RAY_ADDRESS": "elsewhere:1"}
    head = ray_node.environment(inherited, run_directory=Path("/run/e"), token_file=Path("/etc/ray/token"), is_head=True)
    assert (head["RAY_AUTH_MODE"], head["RAY_AUTH_TOKEN_PATH"]) == ("token", "/etc/ray/token")
    assert (head["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"], head["ENGINEHOUSE_RUN_DIRECTORY"]) == ("0", "/run/e")
    assert head["RAY_health_check_failure_threshold"] == "3"
    assert head["RAY_worker_niceness"] == "0", "an actor computes with the priority of a child"
    assert "RAY_ADDRESS" not in head
    other = ray_node.environment({}, run_directory=Path("/run/e"), token_file=None, is_head=False)
    assert other["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_health_check_period_ms" not in other
