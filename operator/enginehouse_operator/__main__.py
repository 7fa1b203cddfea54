"""``python -m enginehouse_operator``: parse flags, connect, run.

Exit code 0 after SIGTERM, 1 when leadership was lost or there is no cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

from . import flags as operator_flags
from . import log_format
from .kubernetes_client import KubernetesClient, NoCluster, configure
from .lease import LeaseLost
from .run import run

LEVELS = 12_000
"""That JSON may be nested: the API server takes 10,000, also in a spec.template, and what nobody can read ends the watch of all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    flags = operator_flags.parse(arguments)
    sys.setrecursionlimit(LEVELS)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_format.formatter(flags.log_format))
    logging.basicConfig(level=flags.log_level.upper(), handlers=[handler])
    log = logging.getLogger("enginehouse.operator")
    sys.excepthook = lambda *raised: log.critical("the operator fails", exc_info=raised)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_main(flags))
    except (LeaseLost, NoCluster) as error:
        log.error("%s: the process ends", error)
        return 1
    return 0


async def _main(flags: operator_flags.Flags) -> None:
    # Until kopf takes them over, when this process leads. The first process of a container hears no signal without a handler.
    main_task = asyncio.current_task()
    if main_task is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, main_task.cancel)
    async with KubernetesClient(await configure()) as client:
        await run(flags, client)


if __name__ == "__main__":
    sys.exit(main())
