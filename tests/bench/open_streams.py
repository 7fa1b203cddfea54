"""Streams of tokens under way, and how each of them ended.

The one job: hold several completions open against one engine and note when the last event of each came, and what it said.
Invariant: nothing is asked for again; the time of an event is taken before it is looked at.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass

_ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Ended:
    """How one stream ended."""

    at: float
    """Seconds since the epoch."""
    last: str
    """The code of the error that it ended with; else ``done``, or what broke."""


class OpenStream(threading.Thread):
    """One completion that goes on for longer than anybody waits."""

    def __init__(self, address: str, body: dict[str, object]) -> None:
        super().__init__(daemon=True)
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._body = json.dumps({**body, "stream": True}).encode()
        self.began = threading.Event()
        self.ended: Ended | None = None

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER_SECONDS)
        last, at = b"", 0.0
        try:
            connection.request("POST", "/v1/completions", self._body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            while line := response.readline():
                if len(line) > 2:
                    last, at = line, time.time()
                    self.began.set()
            self.ended = Ended(at, _word(last))
        except (OSError, http.client.HTTPException) as error:
            self.ended = Ended(time.time(), f"{type(error).__name__}: {error}")
        finally:
            self.began.set()
            connection.close()


def open_streams(address: str, body: dict[str, object], *, count: int, seconds: float) -> list[OpenStream]:
    """So many, each with its first token."""
    streams = [OpenStream(address, body) for _ in range(count)]
    for stream in streams:
        stream.start()
    for stream in streams:
        if not stream.began.wait(seconds) or stream.ended is not None:
            raise RuntimeError(f"a stream is not under way after {seconds:g} s: {stream.ended}")
    return streams


def ends_of(streams: list[OpenStream], *, seconds: float) -> list[Ended]:
    """How they ended, once all have."""
    deadline = time.monotonic() + seconds
    for stream in streams:
        stream.join(max(0.0, deadline - time.monotonic()))
    ends = [stream.ended for stream in streams if stream.ended is not None]
    if len(ends) < len(streams):
        raise RuntimeError(f"{len(streams) - len(ends)} of {len(streams)} streams have not ended after {seconds:g} s")
    return ends


def _word(line: bytes) -> str:
    text = line.decode(errors="replace").strip().removeprefix("data: ")
    if text == "[DONE]":
        return "done"
    try:
        error = json.loads(text).get("error", {})
    except ValueError:
        return f"no JSON: {text[:200]}"
    return str(error.get("code") or f"cut off: {text[:200]}")
