"""Where the model is: looked for on this machine, or downloaded by a process of its own.

Invariant: whatever is wrong with it is a cause for the engine's end, with what to do about it.
"""

from __future__ import annotations

import json
from pathlib import Path

from enginehouse_engine.config import ConfigError
from enginehouse_engine.launcher import termination
from enginehouse_engine.launcher.process import MODEL_FETCH, Process
from enginehouse_engine.launcher.termination import Cause, Exit

MODEL_FETCH_PROCESS = Process(role=MODEL_FETCH, rank=None, index=0, incarnation=1)


def on_this_machine(uri: str) -> str | Cause:
    """Its path; empty = there is none, and none is needed."""
    if not uri:
        return ""
    from enginehouse_engine import model_source

    try:
        return str(model_source.resolve(uri))
    except ConfigError as error:
        return refusal(error)
    except OSError as error:
        return Cause(termination.EXCEPTION, f"{uri} cannot be read: {error}")


def downloaded(uri: str, *, printed: Path, exit: Exit) -> str | Cause:
    """What the download found, or why not."""
    try:
        answer = json.loads(printed.read_bytes())
    except ValueError:
        answer = {"class": termination.EXCEPTION, "message": f"the download of {uri} {exit}: its last log lines say why"}
    if "path" in answer:
        return str(answer["path"])
    return Cause(kind=answer["class"], message=answer["message"], process=MODEL_FETCH_PROCESS, exit=exit)


def refusal(error: ConfigError) -> Cause:
    """The engine cannot start."""
    return Cause(kind=getattr(error, "failure_class", termination.INVALID_CONFIG), message=str(error))
