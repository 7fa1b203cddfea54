"""The house keeps its shape: what must not exist, how long a file may be, what a commit must not hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tracked_files import ROOT, tracked

LONGEST_FILE_LINES = 400
PRODUCT = tracked("operator/*.py", "engine_image/*.py", "tests/localkube/*.py")


@pytest.mark.parametrize("name", ["operator/__init__.py", "operator/operator.py", "engine_image/__init__.py"])
def test_nothing_shadows_the_standard_library(name: str) -> None:
    assert not (ROOT / name).exists()


def test_no_package_markers_among_tests_but_localkube() -> None:
    markers = [path for path in tracked("tests/**/__init__.py") if "localkube" not in path.parts]
    assert markers == []


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_product_file_has_one_job_and_says_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE_LINES, "split it by job"
    assert ast.get_docstring(ast.parse(text)), "a module says its one job in its docstring"


FORBIDDEN = {
    "the host of a package registry": re.compile(
        r"(pypi|pythonhosted)\.org|(proxy|sum)\.golang\.org|registry\.npmjs|crates\.io/|deb\.debian\.org"
    ),
    "a path of one machine": re.compile(r"/(work|farm)/[a-z]"),
    "unpickling": re.compile(r"\bpickle\.loads?\b|recv_pyobj|\bmarshal\.loads?\b"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in {".sum", ".txt"}:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group(0)}" for match in FORBIDDEN[what].finditer(text)]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    # A template's links are those of the page that is made from it, in another folder.
    pages = [page for page in tracked("*.md") if not page.name.endswith(".template.md")]
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert broken == []


def test_tests_that_documents_name_exist() -> None:
    defined = {
        name for path in tracked("tests/**/test_*.py") for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    named = {name for path in tracked("docs/*.md") for name in re.findall(r"`(test_\w+)`", path.read_text())}
    assert named - defined == set()
