"""What an API server serves with: model name, tokenizer, cores, and whether it accepts requests now.

Invariant: a request is let in or refused by :meth:`Service.enter` alone, and ``idle`` is set exactly when none is under way.
Does not know routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from enginehouse_engine.api import errors
from enginehouse_engine.api.front_end import FrontEnd
from enginehouse_engine.api.metrics import Metrics
from enginehouse_engine.text.chat_template import ChatTemplate
from enginehouse_engine.text.tokenizer import Tokenizer

LONG_BODY_BYTES: Final = 4096
"""Prepared in a thread: it takes more than a millisecond."""
VERY_LONG_BODY_BYTES: Final = 256 << 10
"""Prepared in a thread of their own, one after another: each takes up to seconds, and shorter ones must not wait for them."""


@dataclass(frozen=True)
class ModelText:
    """The model's text side. ``template`` is None when it has none; then ``why_no_chat`` says so to clients."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    why_no_chat: str = ""


@dataclass
class Service:
    """One in each API server process."""

    model_name: str
    front_end: FrontEnd
    metrics: Metrics
    api_key: bytes | None = None
    text: ModelText | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    """Responses tell clients to connect elsewhere next time."""
    closed: bool = False
    """New requests are refused."""
    entered: float = -math.inf
    """When the newest request was let in, on the monotonic clock."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="tokenize"))
    slow_thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="tokenize-long"))
    _complete_once: bool = False
    _under_way: int = 0

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def complete(self) -> bool:
        """Everything there that this server starts with: from then on a lost rank only makes the engine smaller."""
        ranks = self.front_end.ranks
        self._complete_once = self._complete_once or (self.text is not None and len(ranks) > 0 and not ranks.missing())
        return self._complete_once

    def why_not_ready(self) -> str:
        """Why ``/ready`` says no; empty = ready."""
        if self.draining or self.closed:
            return "draining: this engine is about to stop"
        return self._why_nobody_serves()

    @contextlib.contextmanager
    def enter(self) -> Iterator[tuple[ModelText, int]]:
        """Let a request in, for as long as it takes; the model's text side and the context limit. Raises ApiError."""
        limit = self.front_end.ranks.max_context_length
        if self.closed:
            raise errors.unavailable("this engine is about to stop", code="draining")
        if (reason := self._why_nobody_serves()) or self.text is None or limit is None:
            raise errors.unavailable(reason)
        if self.front_end.ranks.are_full:
            raise errors.overloaded()
        self._under_way += 1
        self.entered = time.monotonic()
        self.idle.clear()
        try:
            yield self.text, limit
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()

    def _why_nobody_serves(self) -> str:
        ranks = self.front_end.ranks
        if self.complete:
            return "" if ranks.taking else f"no engine core serves: {ranks.outage()}"
        missing = ", ".join(str(rank) for rank in ranks.missing())
        waiting = [
            *(["the tokenizer to load"] if self.text is None else []),
            *([f"engine cores of ranks {missing}"] if missing else []),
            *(["an engine core"] if not missing and not len(ranks) else []),
        ]
        return f"waiting for {' and '.join(waiting)}"
