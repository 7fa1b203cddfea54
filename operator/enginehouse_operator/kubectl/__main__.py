"""``kubectl enginehouse VERB``: kubectl runs ``kubectl-enginehouse`` from the PATH, which is this.

Exit status 0; 1 = not Ready (why), or the disruption budget refuses (drain); 2 = usage, not found, or no answer.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Final

from . import flags as plugin_flags
from . import verbs
from .cluster import Kubectl, KubectlError

TROUBLE: Final = 2
INTERRUPTED: Final = 130
VERBS: Final = {"status": verbs.status, "why": verbs.why_not, "drain": verbs.drain, "logs": verbs.logs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    flags = plugin_flags.parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these letters is no reason to fail
    try:
        code = VERBS[flags.verb](Kubectl(flags.kubectl_options), flags)
        sys.stdout.flush()
    except KubectlError as error:
        if words := str(error):
            print(words, file=sys.stderr)
        return TROUBLE
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return TROUBLE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
