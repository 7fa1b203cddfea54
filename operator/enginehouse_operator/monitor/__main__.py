"""``python -m enginehouse_operator.monitor``: arguments and environment, then the :class:`Monitor` until SIGTERM.

    --socket S --namespace N --replica R --replica-uid U --member POD [--leads] [--log-format json]

The environment says what only the kubelet knows: POD_UID, POD_IP, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from enginehouse_operator import log_format
from enginehouse_operator.monitor.connection import Access
from enginehouse_operator.monitor.run import Monitor, Settings

logger = logging.getLogger("enginehouse.monitor")

_CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def settings(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """Exits with a clear message when something is missing."""
    parser = argparse.ArgumentParser(prog="enginehouse-monitor", description="Reports the life and death of one pod's processes.")
    parser.add_argument("--socket", type=Path, required=True, help="where the launcher connects")
    parser.add_argument("--namespace", required=True, help="of pod and EngineReplica")
    parser.add_argument("--replica", required=True, help="name of the EngineReplica")
    parser.add_argument("--replica-uid", required=True, help="its metadata.uid; another one is never written to")
    parser.add_argument("--member", required=True, help="name of the pod: its row and its field manager")
    parser.add_argument("--log-format", choices=log_format.FORMATS, default="text", help="json: one object a line")
    parser.add_argument("--leads", action="store_true", help="tell the launcher how many ranks the replica shall have")
    parser.add_argument(
        "--credentials", type=Path, default=_CREDENTIALS, help="folder with token and ca.crt (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    wanted = ("POD_UID", "POD_IP", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    missing = [name for name in wanted if not environment.get(name)]
    if missing:
        parser.error(f"the environment lacks {', '.join(missing)}; in a pod the kubelet and the downward API set them")
    return Settings(
        socket=given.socket,
        namespace=given.namespace,
        replica=given.replica,
        replica_uid=given.replica_uid,
        member=given.member,
        pod_uid=environment["POD_UID"],
        pod_address=environment["POD_IP"],
        leads=given.leads,
        log_format=given.log_format,
        access=Access(
            host=environment["KUBERNETES_SERVICE_HOST"],
            port=int(environment["KUBERNETES_SERVICE_PORT"]),
            token_file=given.credentials / "token",
            ca_file=given.credentials / "ca.crt",
        ),
    )


def main() -> int:
    """The exit code."""
    given = settings(None, os.environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_format.formatter(given.log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.excepthook = lambda *raised: logger.critical("the monitor fails", exc_info=raised)
    Monitor(given).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
