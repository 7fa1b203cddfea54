"""Fields of a model's files as they were found, and each checked when it is asked for.

Invariant: a field that comes out has the kind and the range that was asked for; everything else is a :class:`ConfigError` that says
where the field stands, what was wanted and what was found. Does not know what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enginehouse_engine.config import ConfigError

MOST: Final = 2**31 - 1
"""No size or position of a model is larger: kernels count in 32 bits."""
_NO_NUMBER_IS_ABOVE: Final = 1e30
_SHOWN_CHARACTERS: Final = 60


class CheckedFields:
    """The fields of one file. ``default`` stands for a field that is absent or null; a field without one must be there."""

    def __init__(self, values: Mapping[str, Any], *, source: str) -> None:
        self._values = values
        self._source = source

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int = MOST) -> int:
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(name, default)
        # Compared before it is converted: an integer of hundreds of digits is no float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _NO_NUMBER_IS_ABOVE:
            raise self.wrong(name, "a number above 0")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of them; none when absent."""
        value = self._get(name, ())
        ids = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(id, int) and not isinstance(id, bool) and 0 <= id <= MOST for id in ids):
            raise self.wrong(name, "a token id or a list of token ids")
        return ids

    def texts(self, name: str, *, count: int) -> tuple[str, ...]:
        value = self._get(name, None)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(text, str) for text in value):
            raise self.wrong(name, f"a list of {count} texts")
        return tuple(value)

    def inner(self, name: str) -> CheckedFields:
        """The fields of an object inside; without any when it is absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return CheckedFields(value, source=f"{name} of {self._source}")

    def wrong(self, name: str, wanted: str) -> ConfigError:
        """The error for a field that is not what it should be."""
        found = repr(self._values.get(name))
        shown = found if len(found) <= _SHOWN_CHARACTERS else found[:_SHOWN_CHARACTERS] + "..."
        return ConfigError(f"{self._source}: {name} is {shown}, wanted {wanted}: the model's configuration is broken, get it again")

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ConfigError(f"{self._source} does not say {name}: get the model again, or convert it with a current tool")
        return default
