"""Prometheus' own judge of rules and configurations, built from its Go module.

The one job: say what `promtool` objects to. The invariant kept: parser, engine and rule manager are Prometheus', pinned below
`localkube/go/prometheus`.
Not done here: no Prometheus runs; nothing is scraped, and no alert is sent to anybody.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from localkube.binaries import GoModule, ensure_module
from localkube.paths import CachePaths, cache_root

_MODULE = GoModule("prometheus", {"promtool": "github.com/prometheus/prometheus/cmd/promtool"})


def built() -> Path:
    """The program. It takes minutes to build when it is missing: `make test` has it built before the tests."""
    return ensure_module(_MODULE, cache=CachePaths(cache_root())) / "promtool"


def objections_to_rules(groups: list[dict[str, Any]]) -> str:
    """What a Prometheus would say that is given this rule file; nothing if it takes it."""
    return _objections("check", "rules", document={"groups": groups})


def objections_to_configuration(configuration: dict[str, Any]) -> str:
    """What a Prometheus would say that is started with it; nothing if it takes it."""
    return _objections("check", "config", "/dev/stdin", document=configuration)


def objections_to_tests(tests: list[dict[str, Any]], *, rules: Path) -> str:
    """Where the alerts of a rule file differ from those that the tests expect, a sample and an evaluation each minute."""
    document = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [{"interval": "1m", **test} for test in tests]}
    return _objections("test", "rules", "/dev/stdin", document=document)


def _objections(*arguments: str, document: dict[str, Any]) -> str:
    # JSON is YAML.
    command, text = [str(built()), *arguments], json.dumps(document)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
