"""Renders a conversation to the text a model was taught to continue, by the template that comes with the model.

Templates are programs from outside: they run in jinja's immutable sandbox, on plain strings, lists and dicts only.
Invariant: the same text as ``transformers`` ``apply_chat_template`` for the same template and messages.
Does not tokenize.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_FAULTS: Final = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    *(SyntaxError, MemoryError),
)
"""What a program from outside can raise: on values that it did not expect, and when it is compiled, which Jinja leaves to Python in
part."""


class ChatTemplateError(Exception):
    """The template does not compile, or does not take these messages: its own words."""


class _Generation(Extension):
    """``{% generation %}`` marks what a model learns from in training; for rendering its content simply stands there."""

    tags = {"generation"}  # noqa: RUF012 - jinja's declaration

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template with the special tokens it may name."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        """Raises ChatTemplateError when the source does not compile."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except _FAULTS as error:
            raise ChatTemplateError(f"the model's chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for the assistant's next message. Raises ChatTemplateError."""
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except _FAULTS as error:
            raise ChatTemplateError(f"the model's chat template refused the messages: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
