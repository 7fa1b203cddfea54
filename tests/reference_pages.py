"""Three pages of the reference as Markdown: Events, labels and annotations, flags.

The one job: tables of `reasons.py`, `names.py` and both `flags.py`, for `charts/generate.py`.
The invariant kept: a page says what the source says; whatever has no words there raises.
Not done here: writing files; whether a reason really becomes an Event (`tests/unit/operator/test_documents.py`).
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from enginehouse_engine import flags as engine_flags
from enginehouse_operator import flags as operator_flags
from enginehouse_operator import names, reasons
from enginehouse_operator.wanted import template

EVENTS = """# Events

Generated from `operator/enginehouse_operator/reasons.py` by `make generate`. `kubectl events --for inferenceengine/NAME` shows
them, `kubectl describe ie NAME` at its end.

Every Event is about an `InferenceEngine`; source and reporting component are `enginehouse-operator`. The message names the
replica and, of a death, its cause in one line of at most 1,024 characters. The same words about the same engine are one Event
while the API server keeps it, an hour by default, also from another operator; each death is one of its own. Nothing is only in an
Event: [conditions](conditions.md) and `status` have it all. Reasons that are not here are in conditions and logs alone. Kubelets
and schedulers tell of pods in Events of their own (`kubectl describe pod`).

| reason | type | meaning |
|---|---|---|
"""

LABELS = """# Labels and annotations

Generated from `operator/enginehouse_operator/names.py` by `make generate`. All are the operator's, but for
`enginehouse.dev/resume-after`: `spec.template` may not set a label that starts with `enginehouse.dev/` or `app.kubernetes.io/`.

```console
$ kubectl get pods -l enginehouse.dev/engine=smollm2 -L enginehouse.dev/replica,enginehouse.dev/role,enginehouse.dev/serving
```

"""
LABELS_OF_EVERYBODY = """
Everything made for an engine also has the labels `app.kubernetes.io/name: enginehouse`, `app.kubernetes.io/instance` with the
engine's name and `app.kubernetes.io/managed-by: enginehouse-operator`; pods have `app.kubernetes.io/component: leader` or
`worker`, and the annotation `kubectl.kubernetes.io/default-container: engine`.
"""

SETTINGS = """# Settings

Generated from both `flags.py` by `make generate`. Behaviour comes from flags alone; in a cluster the chart and the operator set
them, from [values](../../charts/enginehouse/README.md#values) and from the [spec](api.md). The environment holds what is not
behaviour: where the API server is, and for the hub's library `HF_TOKEN` and `HF_ENDPOINT`. The plugin's flags: [`kubectl
enginehouse`](../kubectl-plugin.md).

"""
OPERATOR_SETTINGS = """## Operator: `enginehouse-operator`

| flag | default | meaning |
|---|---|---|
"""
ENGINE_SETTINGS = """
## Engine: `enginehouse-engine`

Also what PID 1 of an engine container is started with. *spec*: the operator sets it, and refuses it in the template.
*template*: may be given in a pod as an argument in `spec.template` ([how](template.md)). `enginehouse-engine --help` says the
same.

"""


def events() -> str:
    """Every reason that becomes an Event."""
    kinds = dict.fromkeys(reasons.NORMAL_EVENTS, "Normal") | dict.fromkeys(reasons.WARNING_EVENTS, "Warning")
    return EVENTS + "".join(f"| `{reason}` | {kind} | {reasons.MEANINGS[reason]} |\n" for reason, kind in kinds.items())


def labels() -> str:
    """Every label and annotation."""
    rows = {"label": "", "annotation": ""}
    for constant, words in _said_below_names():
        kind = constant.partition("_")[0].lower()
        if kind in rows:
            rows[kind] += f"| `{getattr(names, constant)}` | {words} |\n"
    tables = (f"| {kind} | meaning |\n|---|---|\n{found}" for kind, found in rows.items())
    return LABELS + "\n".join(tables) + LABELS_OF_EVERYBODY


def _said_below_names() -> Iterator[tuple[str, str]]:
    """Constants of `names.py` with the string that follows each."""
    body = ast.parse(Path(names.__file__).read_text()).body
    for assigned, said in pairwise(body):
        if isinstance(assigned, ast.AnnAssign) and isinstance(assigned.target, ast.Name):
            constant = assigned.target.id
            has_words = isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
            if has_words:
                yield constant, " ".join(str(said.value.value).split()).replace("``", "`")
            elif constant.startswith(("LABEL_", "ANNOTATION_")):
                raise ValueError(f"names.{constant} has no string below it that says what it is for")


def settings() -> str:
    """Every flag of operator and engine."""
    of_operator = "".join(f"{_flag(action)}|\n" for action in _actions(operator_flags.parser()))
    parts = [SETTINGS + OPERATOR_SETTINGS + of_operator + ENGINE_SETTINGS]
    for group in engine_flags.parser()._action_groups:
        if rows := [f"{_flag(action)}| {_in_a_pod(action)} |\n" for action in _own(group._group_actions)]:
            title = str(group.title).capitalize()
            parts.append(f"### {title}\n\n| flag | default | meaning | in a pod |\n|---|---|---|---|\n{''.join(rows)}\n")
    return "".join(parts).rstrip() + "\n"


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return _own(parser._actions)


def _own(actions: list[argparse.Action]) -> list[argparse.Action]:
    return [action for action in actions if action.option_strings[0] not in ("-h", "--version")]


def _flag(action: argparse.Action) -> str:
    """The row up to its last column; the default that the help text says in words goes before the value."""
    help_text = str(action.help) % vars(action)
    at_its_end = re.fullmatch(r"(.+) \(default: (.+)\)", help_text)
    words, said = at_its_end.groups() if at_its_end else (help_text, "")
    if "(default:" in words or not action.help:
        raise ValueError(f"{action.option_strings[0]}: the help text has its default at the end, or none")
    if not said and action.required:
        said = "required"
    elif not said or said == str(action.default):
        said = f"`{action.default:g}`" if isinstance(action.default, float) else f"`{action.default}`"
        said = "" if action.default in (None, "", []) else said
    if action.choices:
        words += ": " + ", ".join(f"`{choice}`" for choice in action.choices)
    metavar = f" {action.metavar}" if action.metavar else ""
    return f"| `{action.option_strings[0]}{metavar}` | {said} | {words} "


def _in_a_pod(action: argparse.Action) -> str:
    return "spec" if action.option_strings[0] in template.OWNED_FLAGS else "template"
