"""Every flag with its meaning, and how its text is read: ``docs/wire-protocol.md`` section 1.

Invariant: behaviour comes from here only, and a flag that is absent means the same alone and in a pod. Does not hold one flag
against another (``options.py``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from enginehouse_engine import drill, log_format
from enginehouse_engine.config import ConfigError
from enginehouse_engine.drill import Drill

EXECUTORS = ("InProcess", "Multiprocess", "Ray", "Simulated")
RAY_STRATEGIES = ("Pack", "Spread")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_LONGEST_SECONDS = 24 * 3600
"""As in the InferenceEngine's schema; the kernel's waits take no more than 24 days."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help explains every flag")


def parser() -> argparse.ArgumentParser:
    """Every flag with its meaning, also for ``docs/reference/settings.md``."""
    found = _Parser(
        prog="enginehouse-engine",
        description="Serve a language model with the OpenAI API on this machine: API server and engine core, supervised.",
        epilog="Exit codes: 0 orderly stop; 78 trying again cannot help; 128 + n a process died of signal n, else 1.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(found.add_argument_group("model"))
    _add_shape(found.add_argument_group("processes"))
    _add_memory(found.add_argument_group("memory and context"))
    _add_serving(found.add_argument_group("serving"))
    _add_pod(found.add_argument_group("set by the operator"))
    return found


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="URI",
        default="",
        help="file:///path, a plain path, or hf://org/name; a GGUF file or a Hugging Face folder;"
        " only --executor Simulated does without",
    )
    group.add_argument("--revision", default="main", help="branch, tag or commit of an hf:// model")
    group.add_argument("--served-model-name", metavar="NAME", help="the id in /v1/models (default: the last part of --model)")
    group.add_argument(
        "--model-cache-dir", metavar="DIR", type=_path, help="where hf:// models are kept (default: the hub library's)"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="number format of weights and computation; auto takes the model's own where the machine is good at it",
    )


def _add_shape(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="Multiprocess",
        help="Multiprocess: a process for each accelerator of a rank, or for the CPU; InProcess: one, in the engine core itself;"
        " Ray: the same as actors of a Ray cluster, which is started with the engine, for ranks that outgrow a pod;"
        " Simulated: no model, made-up tokens, for drills and tests",
    )
    group.add_argument(
        "--data-parallel",
        metavar="N",
        type=_at_least(1),
        default=1,
        help="ranks: independent engine cores, each with the whole model",
    )
    group.add_argument(
        "--tensor-parallel", metavar="N", type=_at_least(1), default=1, help="accelerators that share each layer of a rank"
    )
    group.add_argument("--pipeline-parallel", metavar="N", type=_at_least(1), default=1, help="groups of layers a rank is cut into")
    group.add_argument("--api-servers", metavar="N", type=_at_least(1), default=1, help="API server processes")
    group.add_argument(
        "--drill",
        metavar="ROLE:PHASE:FAULT",
        type=_drill,
        action="append",
        default=[],
        help=f"with --executor Simulated: what goes wrong in the first processes of a role ({', '.join(drill.ROLES)}), in phase"
        f" {', '.join(drill.PHASES)}: {', '.join(drill.FAULTS)}; may be repeated, for drills",
    )


def _add_memory(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--memory-limit-bytes",
        metavar="N",
        type=_at_least(1),
        help="memory that all processes may use together (default: the container's limit, else what the machine has available)",
    )
    group.add_argument(
        "--memory-utilization-percent",
        metavar="N",
        type=_between(1, 100),
        default=90,
        help="share of that memory, or of the accelerator's, that is used",
    )
    group.add_argument(
        "--max-context-length",
        metavar="TOKENS",
        type=_at_least(1),
        help="prompt and answer together (default: what fits the memory, at most what the model knows)",
    )
    group.add_argument(
        "--min-context-length", metavar="TOKENS", type=_at_least(1), default=1, help="refuse to serve (exit code 78) when less fits"
    )
    group.add_argument(
        "--simulated-weights",
        metavar="RANK=BYTES",
        type=_rank_and_bytes,
        action="append",
        default=[],
        help="with --executor Simulated: what the model of this rank pretends to weigh; may be repeated, for drills",
    )


def _drill(text: str) -> Drill:
    try:
        return drill.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _rank_and_bytes(text: str) -> tuple[int, int]:
    rank, separator, size = text.partition("=")
    if not (separator and rank.isdecimal() and size.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not RANK=BYTES, such as 1=67108864")
    return int(rank), _between(0, 2**63 - 1)(size)


def _add_serving(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = every IPv4 address")
    group.add_argument(
        "--port", type=_between(0, 65535), default=8000, help="port to listen on; 0 = the kernel picks one, and it is printed"
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=_path,
        help="clients must send this file's content as bearer token (default: no token)",
    )
    group.add_argument(
        "--tls-certificate-file",
        metavar="FILE",
        type=_path,
        help="certificate chain (PEM): serve HTTPS; read again when it changes (default: HTTP)",
    )
    group.add_argument("--tls-key-file", metavar="FILE", type=_path, help="its private key (PEM)")
    group.add_argument(
        "--startup-timeout-seconds", metavar="S", type=_seconds, default=1800.0, help="from start to ready, download included"
    )
    group.add_argument(
        "--drain-timeout-seconds",
        metavar="S",
        type=_seconds,
        default=60.0,
        help="requests under way are finished for so long after SIGTERM or Ctrl-C; a second one cuts them",
    )
    group.add_argument(
        "--hang-stall-seconds",
        metavar="N",
        type=_between(1, _LONGEST_SECONDS),
        default=120,
        help="a process that does not answer its launcher, or is stopped, for so long is killed; longer than any step takes",
    )
    group.add_argument(
        "--log-format",
        choices=log_format.FORMATS,
        default="text",
        help="text for people, json for collectors: one object a line",
    )


def _add_pod(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--monitor-socket",
        metavar="PATH",
        type=_path,
        help="the pod's monitor, which must know this pod before anything starts (default: no monitor)",
    )
    group.add_argument("--replica-uid", metavar="UID", help="identity of the replica (default: made up)")
    group.add_argument("--members", metavar="N", type=_between(1, 64), default=1, help="pods of the replica")
    group.add_argument("--member", metavar="K", type=_between(0, 63), default=0, help="number of this pod; 0 is the leader")
    group.add_argument("--workers-per-member", metavar="W", type=_at_least(1), help="workers in each pod (default: all in one)")
    group.add_argument("--leader", metavar="HOST", default="", help="host name of the leader, whose launcher listens on port 7411")
    group.add_argument("--engine-name", metavar="NAME", default="", help="what Ray's actors are named after (default: the replica)")
    group.add_argument("--ray-strategy", choices=RAY_STRATEGIES, help="how a rank's workers are placed in its pods (default: Pack)")
    group.add_argument(
        "--ray-token-file",
        metavar="FILE",
        type=_path,
        help="token by which Ray's processes know each other (default: made up)",
    )


def _path(text: str) -> Path:
    # Unlike pathlib's, this leaves ~NOBODY alone instead of raising: the file is then said not to be there.
    return Path(os.path.expanduser(text)).absolute()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0 to {_LONGEST_SECONDS}")
    return value


def _at_least(lowest: int) -> Callable[[str], int]:
    return _between(lowest, 2**63 - 1)


def _between(lowest: int, highest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text} is not between {lowest} and {highest}")
        return value

    return number
