"""What a decoder raises of bytes that somebody else wrote: one list for all who turn it into their own refusal.

Invariant: whatever bytes msgspec is given, what it raises is in here; text that is no UTF-8 and nesting without end are not errors
of its own kind. Each place that kept a list of its own had forgotten one (a test feeds them all).
"""

from __future__ import annotations

from typing import Final

import msgspec

DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
