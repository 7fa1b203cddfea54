"""A record of the operator's log, as text and as JSON."""

from __future__ import annotations

import json
import logging

import pytest

import page_blocks
from enginehouse_operator import log_format


def record(message: str, *arguments: object, error: BaseException | None = None, **extra: str) -> logging.LogRecord:
    raised = (type(error), error, error.__traceback__) if error is not None else None
    found = logging.LogRecord("enginehouse.operator", logging.WARNING, "f.py", 1, message, arguments, raised)
    found.created = 1767225600.25  # 2026-01-01
    vars(found).update(extra)
    return found


def test_text_says_which_engine_before_the_words() -> None:
    about = log_format.about("n", "e", object="e-0", reason="ScaleUp")
    line = log_format.formatter("text").format(record("%s is made (%s)", "e-0", "ScaleUp", **about))
    assert line.endswith(" WARNING enginehouse.operator: n/e: e-0 is made (ScaleUp)")
    assert log_format.formatter("text").format(record("leading")).endswith(" WARNING enginehouse.operator: leading")


def test_json_has_time_level_logger_and_message_and_what_the_record_is_about_and_nothing_else() -> None:
    about = log_format.about("n", "e", object="e-0", reason="ScaleUp")
    line = log_format.formatter("json").format(record("%s is made", "e-0", other="x", **about))
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250Z", "level": "warning", "logger": "enginehouse.operator", "message": "e-0 is made",
        "engine": "n/e", "object": "e-0", "reason": "ScaleUp",
    }  # fmt: skip


def test_the_record_that_the_page_shows_is_written_so() -> None:
    found = [block for block in page_blocks.blocks("json") if block.page == "docs/observability.md"]
    (block,) = (block for block in found if "logger" in json.loads(block.content))
    shown = json.loads(block.content)
    about = {key: shown[key] for key in ("engine", "object", "reason")}
    written = record("%s", shown["message"], **about)
    written.levelno, written.levelname = logging.INFO, "INFO"
    assert log_format.formatter("json").format(written) == block.content.strip()


@pytest.mark.parametrize("words", ["one\ntwo", 'a "quoted" \\ word', "Größe \u2028 \x00"])
def test_json_is_one_line_whatever_is_said_also_with_a_traceback(words: str) -> None:
    try:
        raise ValueError(words)
    except ValueError as error:
        line = log_format.formatter("json").format(record("%s", words, error=error))
    assert len(line.encode().splitlines()) == 1
    found = json.loads(line)
    assert found["message"] == words
    assert found["error"].startswith("Traceback")
