"""Token ids back to text while they arrive, and the search for stop strings in that text.

Invariant: never half a character, and the pieces put together equal the whole decoded at once, however the tokens are cut into
steps; but for a row of SentencePiece's byte tokens that is no text, of which the library gives up every byte, and this the wrong
ones. One instance for each sequence. Does not know why a sequence ends.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from enginehouse_engine.text.tokenizer import Tokenizer


class Detokenizer:
    """Bytes of tokens into an incremental UTF-8 decoder: constant work for each token, bytes that can be no text become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, *, continues: bool) -> None:
        """``continues``: the tokens go on with a text, so that a space their first one begins with belongs to it."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.drops_first_space and not continues

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that these tokens complete."""
        hidden, spell = self._tokenizer.hidden, self._tokenizer.token_bytes
        return self._strip(self._decoder.decode(b"".join(spell(token) for token in tokens if token not in hidden)))

    def finish(self) -> str:
        """What is left when no token follows: an unfinished character comes out as U+FFFD."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Lets text through up to the first stop string; withholds an end that could become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, text: str, *, may_end: bool = True) -> str:
        """The text that can be shown now. Once a stop string is complete, ``stopped`` is set and nothing more comes out.

        ``may_end``: whether one that this text completes counts.
        """
        if self.stopped:
            return ""
        if not self._stops:
            return text
        known, text = len(self._held), self._held + text
        if may_end and (found := self._first(text, known)) is not None:
            self.stopped, self._held = True, ""
            return text[:found]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was withheld, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str, known: int) -> int | None:
        """Where the stop string begins that is complete first, of those that end behind the ``known`` beginning.

        The first, so that the answer does not depend on how the text was cut into pieces.
        """
        found = ((text.find(stop, max(0, known + 1 - len(stop))), len(stop)) for stop in self._stops)
        return min(((at + length, at) for at, length in found if at >= 0), default=(0, None))[1]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a true beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
