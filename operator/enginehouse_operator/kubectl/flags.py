"""The plugin's verbs and flags.

Invariant: parsed once into a frozen value. Usage errors exit with 2. Does not act (``verbs.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import msgspec

from enginehouse_operator import __version__

EXIT_CODES: Final = (
    "exit status: 0; 1 = not Ready (why), or the disruption budget refuses (drain); 2 = usage, not found, or no answer"
)


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    verb: str
    name: str | None
    kubectl_options: tuple[str, ...]
    as_json: bool = False
    follow: bool = False
    since: str | None = None

    @property
    def cluster_options(self) -> tuple[str, ...]:
        """Those that say which cluster: a command that is to be copied goes to the same one."""
        return tuple(option for option in self.kubectl_options if not option.startswith("--namespace="))


def parse(arguments: Sequence[str] | None = None) -> Flags:
    """Exits with a message when they make no sense."""
    cluster = argparse.ArgumentParser(add_help=False)
    cluster.add_argument("-n", "--namespace", help="default: the context's")
    cluster.add_argument("--context", help="of the kubeconfig; default: the current one")
    cluster.add_argument("--kubeconfig", help="default: as kubectl has it")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("-o", "--output", choices=("text", "json"), default="text")

    parser = argparse.ArgumentParser(
        prog="kubectl enginehouse", description="Looks at LLM inference engines of Enginehouse.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    status = verbs.add_parser("status", parents=[cluster, output], help="engines, their replicas, members and ranks as a tree")
    status.add_argument("name", metavar="ENGINE", nargs="?", help="default: all of the namespace")
    words = "what keeps an engine from being Ready, and what to do"
    why = verbs.add_parser("why", parents=[cluster, output], help=words, epilog=EXIT_CODES)
    why.add_argument("name", metavar="ENGINE")
    words = "take one replica out of service: it finishes its requests, a successor is made"
    drain = verbs.add_parser("drain", parents=[cluster], help=words, epilog=EXIT_CODES)
    drain.add_argument("name", metavar="REPLICA_OR_POD")
    logs = verbs.add_parser("logs", parents=[cluster], help="of all members of an engine, in the order of time")
    logs.add_argument("name", metavar="ENGINE")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes, in the order of its arrival")
    logs.add_argument("--since", metavar="DURATION", help="only what is newer, such as 30s or 5m")
    found = parser.parse_args(arguments)
    options = {"namespace": found.namespace, "context": found.context, "kubeconfig": found.kubeconfig}
    return Flags(
        verb=found.verb,
        name=found.name,
        kubectl_options=tuple(f"--{key}={value}" for key, value in options.items() if value is not None),
        as_json=getattr(found, "output", "text") == "json",
        follow=getattr(found, "follow", False),
        since=getattr(found, "since", None),
    )
