"""The command line: every flag of the contract is there, absent ones have its defaults, wrong ones are named."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse_engine.config import ConfigError, ParallelConfig
from enginehouse_engine.flags import parser
from enginehouse_engine.options import Options, parse

CONTRACT = Path(__file__).parents[3] / "docs/wire-protocol.md"

MEMBERS = ("--executor", "Simulated", "--data-parallel", "2", "--tensor-parallel", "2")


RAY = ["--model", "m", "--executor", "Ray", "--ray-token-file", "/t"]


def test_absent_flags_mean_what_the_contract_says() -> None:
    options = parse(["--model", "/models/tiny.gguf"])
    assert options.replica_uid
    assert dataclasses.replace(options, replica_uid="") == Options(
        model="/models/tiny.gguf",
        revision="main",
        served_model_name="tiny.gguf",
        executor="Multiprocess",
        parallel=ParallelConfig(data=1, tensor=1, pipeline=1),
        api_servers=1,
        host="127.0.0.1",
        port=8000,
        memory_limit_bytes=None,
        memory_utilization_percent=90,
        max_context_length=None,
        min_context_length=1,
        startup_timeout_seconds=1800.0,
        drain_timeout_seconds=60.0,
        hang_stall_seconds=120,
        api_key_file=None,
        tls_certificate_file=None,
        tls_key_file=None,
        monitor_socket=None,
        replica_uid="",
        members=1,
        member=0,
        workers_per_member=None,
        leader="",
        dtype="auto",
        log_format="text",
        model_cache_dir=None,
        engine_name="",
        ray_strategy="Pack",
        ray_token_file=None,
        simulated_weights=(),
        drills=(),
    )


def test_the_contract_and_the_parser_name_the_same_flags() -> None:
    table = CONTRACT.read_text().split("## 1.")[1].split("## 2.")[0]
    promised = {
        flag for row in table.splitlines() if row.startswith("| `--") for flag in re.findall(r"--[a-z-]+", row.split("|")[1])
    }
    assert promised == {option for action in parser()._actions for option in action.option_strings} - {"-h", "--help"}


def test_help_explains_every_flag() -> None:
    assert all(action.help for action in parser()._actions)


def test_paths_become_absolute_and_the_name_is_the_last_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse(["--model", "hf://org/name", "--api-key-file", "key", "--model-cache-dir", "~/models"])
    assert options.served_model_name == "name"
    assert options.api_key_file == tmp_path / "key"
    assert options.model_cache_dir == Path.home() / "models"


@pytest.mark.parametrize(
    "shape",
    [
        [],
        ["--tensor-parallel", "2", "--members", "2", "--leader", "l", "--workers-per-member", "1"],
        ["--data-parallel", "4", "--tensor-parallel", "2", "--members", "2", "--leader", "l", "--workers-per-member", "4"],
        ["--workers-per-member", "1", "--leader", "l"],
    ],
    ids=["alone", "a rank over two", "ranks that share members", "a leader that others may join"],
)
def test_a_replica_with_ray_spans_pods_where_each_worker_has_a_known_one(shape: list[str]) -> None:
    assert parse([*RAY, *shape, "--ray-strategy", "Spread"]).ray_token_file == Path("/t")


def test_a_simulated_engine_needs_no_model() -> None:
    assert parse(["--executor", "Simulated"]).served_model_name == "simulated"


def test_what_ranks_pretend_to_weigh_may_be_said_for_each() -> None:
    argv = ["--executor", "Simulated", "--data-parallel", "3", "--simulated-weights", "1=5", "--simulated-weights=2=0"]
    assert parse(argv).simulated_weights == ((1, 5), (2, 0))
    assert parse(["--executor", "Simulated"]).simulated_weights == ()


def test_drills_are_named_by_role_phase_and_fault() -> None:
    argv = ["--executor", "Simulated", "--drill", "engine-core:load:hold", "--drill=api-server:drain:exit-1"]
    assert [str(drill) for drill in parse(argv).drills] == ["engine-core:load:hold", "api-server:drain:exit-1"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--model is missing"),
        (["--model", "m", "--port", "70000"], "argument --port: 70000 is not between 0 and 65535"),
        (["--model", "m", "--port", "http"], "argument --port"),
        (["--model", "m", "--api-servers", "0"], "argument --api-servers: 0 is not between 1"),
        (["--model", "m", "--memory-utilization-percent", "101"], "101 is not between 1 and 100"),
        (["--model", "m", "--executor", "Nobody"], "invalid choice: 'Nobody'"),
        (["--model", "m", "--ray-strategy", "Spread"], "--ray-strategy is for --executor Ray, not Multiprocess"),
        (["--model", "m", "--ray-token-file", "t"], "--ray-token-file is for --executor Ray, not Multiprocess"),
        (["--model", "m", "--executor", "Ray", "--leader", "l"], "--executor Ray with --leader l wants --ray-token-file"),
        (
            [*RAY, "--tensor-parallel", "4", "--members", "1", "--workers-per-member", "3"],
            "--workers-per-member 3 must divide the 4 workers of a rank (tensor x pipeline), or be a multiple of them",
        ),
        (
            [
                *RAY,
                "--members",
                "2",
                "--leader",
                "l",
                "--tensor-parallel",
                "4",
                "--data-parallel",
                "3",
                "--workers-per-member",
                "6",
            ],
            "--workers-per-member 6 must divide the 4 workers of a rank",
        ),
        (["--model", "m", "--drain-timeout-seconds", "-1"], "-1 is no number of seconds"),
        (["--model", "m", "--hang-stall-seconds", "0"], "0 is not between 1 and 86400"),
        (["--model", "m", "--drain-timeout-seconds", "nan"], "nan is no number of seconds"),
        (["--model", "m", "--startup-timeout-seconds", "3000000"], "3000000 is no number of seconds from 0 to 86400"),
        (["--model", "broken-\udcff"], "is no UTF-8 text"),
        (["--model", "m", "--max-context-length", "10", "--min-context-length", "20"], "is below --min-context-length 20"),
        (["--model", "m", "--simulated-weights", "0=1"], "is for --executor Simulated, not"),
        (["--executor", "Simulated", "--simulated-weights", "1=9"], "names rank 1, but --data-parallel 1 has ranks 0 to 0"),
        (["--executor", "Simulated", "--simulated-weights", "0"], "'0' is not RANK=BYTES"),
        (["--model", "m", "--drill", "engine-core:load:hold"], "--drill is for --executor Simulated, not Multiprocess"),
        (
            ["--executor", "Simulated", "--drill", "core:load:hold"],
            "'core:load:hold' is not ROLE:PHASE:FAULT, of api-server, engine-",
        ),
        (["--executor", "Simulated", "--drill", "worker:load:hold"], "has workers only where a replica has several members"),
        (["--model", "m", "--members", "2"], "--members 2 with --executor Multiprocess: only Ray and Simulated span several pods"),
        (
            [*MEMBERS, "--members", "2", "--leader", "l", "--workers-per-member", "1"],
            "--members 2 x --workers-per-member 1 must be the 4 workers of data 2 x tensor 2 x pipeline 1",
        ),
        ([*MEMBERS, "--members", "2", "--leader", "l", "--member", "2"], "--members 2 wants --member 0 to 1 and --leader HOST"),
        ([*MEMBERS, "--members", "2"], "--members 2 wants --member 0 to 1 and --leader HOST"),
        (["--model", "m", "--api-server", "2"], "unrecognized arguments: --api-server"),
        (["--model", "m", "--tls-certificate-file", "c"], "--tls-certificate-file and --tls-key-file belong together"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_are_named(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model", "/no/such/model"], "ModelNotFound: /no/such/model"),
        (["--model", "ftp://x"], "ModelNotFound: ftp://x: unknown scheme"),
        (["--executor", "Simulated", "--memory-limit-bytes", "1000"], "InvalidConfig: 0 MiB at 90 % leave 0 MiB"),
        ([], "InvalidConfig: --model is missing"),
        (["--executor", "Simulated", "--host", "a" * 70], f"InvalidConfig: --host {'a' * 70} is no address of this machine"),
        (["--model", "~nobody-of-this-name/m"], "ModelNotFound: ~nobody-of-this-name/m: "),
        (
            ["--executor", "Simulated", "--api-key-file", "~nobody-of-this-name/key"],
            "InvalidConfig: API server 0: the API key's file",
        ),
    ],
)
def test_what_cannot_work_ends_with_78_in_one_line(argv: list[str], said: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "enginehouse_engine", "--port", "0", *argv]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 78
    assert f"the engine ends: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr
