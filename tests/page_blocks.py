"""What the pages hold that can be tried: their code blocks, manifests and commands.

The one job: find them, in the order of the pages. Decision records and the changelog tell of the past and are not read.
Not done here: trying them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "charts/enginehouse/README.md")),
    *(page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "adr"),
]
_BLOCK_OR_SPAN = re.compile(r"^ *```(\w*)\n(.*?)^ *```$|`((?:kubectl|helm) [^`]+)`", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^[$#] ((?:.*\\\n)*.*)\n((?:(?![$#] ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One code block. ``page`` is a path from the root."""

    page: str
    language: str
    content: str


@dataclass(frozen=True)
class Command:
    """As it is typed, and what the page shows of its output."""

    page: str
    text: str
    shown: str = ""


def blocks(*languages: str) -> Iterator[Block]:
    """Of these languages, or all."""
    for page, language, content, _ in _found():
        if content and (language in languages or not languages):
            yield Block(page, language, content)


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Of all YAML blocks, each with a name of its own."""
    for block in blocks("yaml"):
        for number, document in enumerate(yaml.safe_load_all(block.content)):
            yield f"{block.page}-{number}", document


def commands() -> Iterator[Command]:
    """Of console blocks; of kubectl and helm also those within a line, unless they name no more than a verb."""
    for page, language, content, span in _found():
        if language == "console":
            yield from (Command(page, text, shown) for text, shown in _COMMAND.findall(content))
        elif len(span.split()) > (3 if "kubectl enginehouse" in span else 2):
            yield Command(page, " ".join(span.split()))


def _found() -> Iterator[tuple[str, str, str, str]]:
    for page in PAGES:
        for found in _BLOCK_OR_SPAN.findall(page.read_text()):
            yield (str(page.relative_to(ROOT)), *found)
