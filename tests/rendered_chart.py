"""The chart as helm renders it.

The one job: the objects that helm would send, for values of a test. Not done here: sending them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import yaml

from chart_values import CHART
from localkube import cluster

RELEASE = "enginehouse"

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]


class HelmError(Exception):
    """helm refused; its words."""


class _EachKeyOnce(yaml.SafeLoader):
    """YAML wants that. PyYAML and helm take the last one, what other tools do with a chart ends there."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"keys that stand twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


@pytest.fixture
def render(api_cluster: cluster.Cluster, namespace: str) -> Render:
    """The objects that helm would send, with values as `--set-json` takes them."""

    def run(**values: object) -> Objects:
        version = json.loads(api_cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        command = [str(api_cluster.binaries / "helm"), "template", RELEASE, str(CHART), "--namespace", namespace]
        command += ["--kube-version", version]
        for name, value in values.items():
            command += ["--set-json", f"{name.replace('__', '.')}={json.dumps(value)}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise HelmError(done.stderr)
        return [document for document in yaml.load_all(done.stdout, Loader=_EachKeyOnce) if document]

    return run


def of_kind(objects: Objects, *kinds: str) -> Objects:
    """In the order in which they were rendered."""
    return [found for found in objects if found["kind"] in kinds]
