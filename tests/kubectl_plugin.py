"""``kubectl enginehouse`` installed for a test: kubectl finds it on the PATH, and a kubeconfig is all that it has.

The one job: run the plugin as a user does. Not done here: clusters and engines.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from localkube.cluster import Cluster

OPERATOR = Path(__file__).parents[1] / "operator"
SCRIPT = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(OPERATOR)!r})
from enginehouse_operator.kubectl.__main__ import main
sys.exit(main())
"""
"""What an installation makes of ``[project.scripts]``."""
DEADLINE_SECONDS = 60


def environment(cluster: Cluster, folder: Path) -> dict[str, str]:
    """``folder`` is the only one on the PATH besides kubectl's and the system's, and the home."""
    script = folder / "kubectl-enginehouse"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    path = os.pathsep.join([str(folder), str(cluster.binaries), os.defpath])
    return {"PATH": path, "KUBECONFIG": str(cluster.kubeconfig), "HOME": str(folder)}


class Plugin:
    """For one namespace."""

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        self._kubectl = str(cluster.binaries / "kubectl")
        self._namespace = namespace
        self._environment = environment(cluster, folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """To its end."""
        command = self._command(arguments)
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)

    def why(self, engine: str) -> str:
        """What it says of an engine that is not Ready, in one line."""
        said = self.run("why", engine)
        assert said.returncode == 1, said.stdout + said.stderr
        return " ".join(said.stdout.split())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The caller ends it."""
        return subprocess.Popen(self._command(arguments), env=self._environment, stdout=subprocess.PIPE, text=True)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [self._kubectl, "enginehouse", *arguments, "--namespace", self._namespace]
