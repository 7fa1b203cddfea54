"""The user's own kubectl: the only way to the cluster, so that every kubeconfig and every way to log in works.

Invariant: what kubectl says is passed on in its own words, at once where a login may wait for its user; every call but a log that
is followed has a deadline. Nothing is written but evictions. Does not know what is asked for (``verbs.py``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

CALL_SECONDS: Final = 60.0
"""A login that waits for its user, in a browser or with a code, is in it."""

Raw = Mapping[str, Any]


class KubectlError(Exception):
    """What was wanted did not come: kubectl's words, or none where it has said them to the user itself."""


class Refused(KubectlError):
    """A budget of disruptions does not allow an eviction now (429)."""


class Kubectl:
    """``options``: --context, --kubeconfig and --namespace, as they were given to the plugin."""

    def __init__(self, options: Sequence[str]) -> None:
        program = shutil.which("kubectl")
        if program is None:
            raise KubectlError("kubectl is not on the PATH: the plugin reads the cluster with it")
        self._program = program
        self._options = tuple(options)

    def get(self, *arguments: str, quietly: bool = False) -> list[Raw]:
        """Objects, of one kind or several, in the order of the kinds. Raises KubectlError; ``quietly``: with kubectl's words."""
        found = self._run("get", *arguments, "--output=json", "--ignore-not-found", quietly=quietly)
        if not found.strip():
            return []
        answer: Raw = msgspec.json.decode(found)
        return list(answer["items"]) if answer.get("kind") == "List" else [answer]

    def evict(self, pod: Raw) -> None:
        """As a node drain would: this very pod, if its disruption budget allows. Raises Refused, or KubectlError."""
        metadata = pod["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": metadata["uid"]}},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        self._run("create", f"--raw={path}", "--filename=-", stdin=msgspec.json.encode(eviction).decode(), quietly=True)

    def become(self, *arguments: str) -> NoReturn:
        """Let kubectl take this process's place: signals and Ctrl-C are its own then."""
        sys.stdout.flush()
        os.execv(self._program, [self._program, *arguments, *self._options])

    def read(self, *arguments: str) -> str:
        """What it prints. Raises KubectlError."""
        return self._run(*arguments)

    def _run(self, *arguments: str, stdin: str | None = None, quietly: bool = False) -> str:
        """``quietly``: its complaints are in the error alone."""
        command = [self._program, *arguments, *self._options]
        complaints = subprocess.PIPE if quietly else None
        try:
            done = subprocess.run(
                command, input=stdin, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace",
                timeout=CALL_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {' '.join(arguments)}: no answer within {CALL_SECONDS:.0f} s") from error
        if done.returncode != 0:
            words = (done.stderr or "").strip()
            if not words and (quietly or done.returncode < 0):
                words = f"kubectl {' '.join(arguments)} exited {done.returncode}"
            raise (Refused if "(TooManyRequests)" in words else KubectlError)(words)
        return done.stdout
