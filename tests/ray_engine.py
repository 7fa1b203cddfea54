"""An engine of executor Ray on a cluster of localkube: its manifest, its actors by name, and what Ray itself says is there.

Processes of Ray change their command lines, so who they are is read where it is known: in the launchers' logs. Does not judge.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import Any, Final

import living_processes
from cluster_history import Object, conditions, rows
from example_model import mounted
from killed_engine import MODEL, KilledEngine
from living_processes import PodProcess

ONE_POD_MIB: Final = 3072

_IN_THE_LOG: Final = re.compile(r"(?:started|adopted) (.+), pid (\d+)(?:, incarnation (\d+))?$", re.MULTILINE)

# Asks the head's own tables: no driver, which would be an actor's owner and a process more.
_ASK_RAY: Final = """
import json, os
os.environ.update(RAY_AUTH_MODE='token', RAY_AUTH_TOKEN_PATH='/var/run/secrets/enginehouse/ray-token/token')
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
state = GlobalState()
state._initialize_global_state(GcsClientOptions.create(os.environ['POD_IP'] + ':6379', None, True, False))
actors = [one['Name'] for one in state.actor_table(None, None, None).values() if one['State'] != 'DEAD']
groups = [one['name'] for one in state.placement_group_table().values() if one['state'] != 'REMOVED']
print('found:' + json.dumps(sorted(actors) + sorted('group ' + name for name in groups)))
"""


_RAISES_WHEN_TOLD: Final = """
import signal

def fail(number, frame):
    raise ValueError("told to raise")

signal.signal(signal.SIGUSR1, fail)
"""
"""Python runs a file ``sitecustomize.py`` at every start: the engine has no switch for this, nor has Ray."""

RAISING: Final[Object] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "raising"},
    "data": {"sitecustomize.py": _RAISES_WHEN_TOLD},
}


def manifest(
    name: str, claim: str, *, executor: str = "Ray", pod: Object | None = None, raising: bool = False, **spec: Any
) -> Object:
    """In float32: in bfloat16 sums in another order choose other tokens. ``pod``: more of the pods' spec.

    ``claim``: of the model. ``raising``: every process of the engine raises an exception at SIGUSR1, by the namespace's RAISING.
    """
    mounts = [{"name": "models", "mountPath": "/models"}]
    container: Object = {"name": "engine", "args": ["--dtype=float32"], "volumeMounts": mounts}
    volumes = [mounted(claim)]
    if raising:
        volumes.append({"name": "raising", "configMap": {"name": RAISING["metadata"]["name"]}})
        mounts.append({"name": "raising", "mountPath": "/raising"})
        container["env"] = [{"name": "PYTHONPATH", "value": "/raising:/opt/enginehouse"}]
    overlay = {"volumes": volumes, "containers": [container], **(pod or {})}
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "file:///models", "servedName": MODEL},
            "executor": executor,
            "resources": {"limits": {"memory": f"{ONE_POD_MIB}Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}},
            "context": {"maxLength": 256},
            "drain": {"timeoutSeconds": 20},
            "template": {"spec": overlay},
            **spec,
        },
    }


class RayEngine(KilledEngine):
    """Processes are called what the launchers call them."""

    def named(self, name: str, *, incarnation: int = 1) -> PodProcess:
        """One that lives."""
        found = self.names().get((name, incarnation))
        assert found is not None, f"{self.name} has no {name}, incarnation {incarnation}: {self.names()}\n{self.logs()}"
        return found

    def names(self) -> dict[tuple[str, int], PodProcess]:
        """All that live, by name and incarnation."""
        found = {}
        for uid, processes in self.look().items():
            own = {living_processes.own_pid(process.pid): process for process in processes}
            (pod,) = (pod for pod in self.pods() if pod["metadata"]["uid"] == uid)
            for name, pid, incarnation in _IN_THE_LOG.findall(self.history.log(pod)):
                if int(pid) in own:
                    found[name, int(incarnation or 1)] = own[int(pid)]
        return found

    def kill(self, name: str, *, incarnation: int = 1) -> None:
        self.named(name, incarnation=incarnation).signal(signal.SIGKILL)

    def have_raise(self, name: str, *, incarnation: int = 1) -> None:
        """An ordinary exception, where its main thread is just now; the engine was made ``raising``."""
        self.named(name, incarnation=incarnation).signal(signal.SIGUSR1)

    def take_from_the_network(self, pod: Object) -> None:
        """As if its node were gone: nothing comes from it any more, and nobody says so. Its kubelet can still remove it."""
        inside = f"--net=/proc/{self.processes(pod)[0].pid}/ns/net"
        subprocess.run(["nsenter", inside, "ip", "link", "set", "eth0", "down"], check=True, timeout=10)

    def in_ray(self) -> list[str]:
        """Actors and placement groups that there are, asked of the head."""
        leader = self.pods()[0]
        script = ("exec", leader["metadata"]["name"], "-c", "engine", "--", "env", f"POD_IP={leader['status']['podIP']}")
        said = self.installation.kubectl(*script, "python", "-c", _ASK_RAY, namespace=self.history.namespace, timeout_seconds=120)
        answer: list[str] = json.loads(said.rpartition("found:")[2])
        return answer

    def condition(self, name: str) -> Object:
        found: Object = conditions(self.engine).get(name, {})
        return found

    def leader_row(self) -> Object:
        """Of the replica that goes on."""
        living = [replica for replica in self.history.now("ier", self.name) if not replica["spec"].get("end")]
        uid = self.pods()[0]["metadata"]["uid"] if self.pods() else ""
        return next((row for replica in living for row in rows(replica) if row["uid"] == uid), {})

    def rank_states(self) -> list[tuple[int, int, str]]:
        """Rank, incarnation, state, as the leader has them."""
        return sorted((rank["rank"], rank["incarnation"], rank["state"]) for rank in self.leader_row().get("ranks", ()))

    def placed(self) -> list[tuple[int, str, list[str]]]:
        """Rank, state of its group, and what each bundle lacks."""
        groups = self.leader_row().get("placement", ())
        return [(group["rank"], group["state"], [bundle.get("lacking", "") for bundle in group["bundles"]]) for group in groups]

    def scale(self, data: int) -> None:
        patch = {"spec": {"parallelism": {"data": data}}}
        self.kubectl("patch", f"ie/{self.name}", "--type=merge", "-p", json.dumps(patch))

    def kubectl(self, *arguments: str) -> str:
        return self.installation.kubectl(*arguments, namespace=self.history.namespace)

    def secrets(self) -> list[str]:
        """Names of this engine's."""
        return self.kubectl("get", "secrets", "-l", f"enginehouse.dev/engine={self.name}", "-o", "name").split()
