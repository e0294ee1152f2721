r"""Step-labelled data of other projects, into our rows; `prm/public_writers.py` is the way back.

    math_shepherd   {"input": "q Step 1: ... ки\nStep 2: ... ки", "label": the same with + and -, "task"}
    openrlhf        {"input": "q Step 1: ... ки\nStep 2: ... ки", "value": ["+", "-"]}
    er_prm          {"text": "q Step 1: ... ки\nStep 2: ... ки", "value": [0.25, 1.0]}
    openr           {"question", "process": "... ки ... ки", "label": ["+", "-"]}, what openr's converters write
    rlhflow         {"conversations": [user: "q Step 1: ...", assistant: "+", user: "Step 2: ...", assistant: "-"]}
    processbench    {"id", "generator", "problem", "steps", "final_answer_correct", "label": first error or -1}
    prm800k, math_aps, math_aps_tree: several responses a row, in `prm/public_trees.py`
    stepwise        TRL's and ours, in `prm/formats.py`

A step of theirs with blank lines in it becomes several of ours of which only the last is labelled, so that texts stay
as they are. What has no place in our fields (task, generator, ...) is kept in `provenance`, and writing puts it back.
Files are JSON Lines or one JSON list.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prm.formats import StepRow, read_stepwise
from prm.public_fields import Row, field, sign, step_row
from prm.public_trees import math_aps, math_aps_tree, prm800k
from verifiers.errors import ConfigError, DataError
from verifiers.jsonl import numbered_rows, open_bytes, parse_json

MARK = "ки"
"""Math-Shepherd's step tag."""
OPENR_MARK = "\n\n\n\n\n"
"""The step tag that openr's converters write by default."""
FIRST = re.compile(r"\s*Step 1: ?")
"""Where the question ends and the first step begins."""


def math_shepherd(row: Row, where: str) -> list[StepRow]:
    """One response; `Step 1:` must stand once, and every step must have its + or -."""
    text, labelled = field(row, "input", str, where), field(row, "label", str, where)
    marked = text.split(MARK)
    if marked[-1].strip():
        raise DataError(f"{where}, field 'input': its last step has no {MARK!r}: {marked[-1]!r:.80}")
    labels: list[float | None] = []
    at = 0
    for number, part in enumerate(marked[:-1], start=1):
        given = labelled[at + len(part) : at + len(part) + 1]
        if labelled[at : at + len(part)] != part or given not in ("+", "-"):
            raise DataError(f"{where}, field 'label': step {number} does not repeat the input with + or - at its end")
        labels.append(float(given == "+"))
        at += len(part) + 1
    prompt, steps = _numbered(marked[:-1], where)
    return [step_row(prompt, steps, labels, provenance={"format": "math_shepherd", "task": row.get("task")})]


def _numbered(texts: list[str], where: str) -> tuple[str, list[str]]:
    """(prompt, steps) where the first text holds both, divided by `Step 1:`."""
    found = list(FIRST.finditer(texts[0])) if texts else []
    if len(found) != 1:
        raise DataError(
            f"{where}: 'Step 1: ' must stand once, between question and first step; it stands {len(found)} times"
        )
    first = found[0]
    steps = [texts[0][first.start() :].strip(), *(text.strip() for text in texts[1:])]
    return texts[0][: first.start()], steps


def openrlhf(row: Row, where: str) -> list[StepRow]:
    """Math-Shepherd as OpenRLHF's trainer read it (`zhuzilin/Math-Shepherd`): tagged text and a list of signs."""
    labels = [sign(value, f"{where}, field 'value'[{n}]") for n, value in enumerate(field(row, "value", list, where))]
    return [_tagged(row, "input", labels, where, "openrlhf")]


def er_prm(row: Row, where: str) -> list[StepRow]:
    """ER-PRM-Data: tagged text and a list of soft labels (entropy-regularised, so shares, of one trial each)."""
    labels = field(row, "value", list, where)
    for number, value in enumerate(labels):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"{where}, field 'value'[{number}]: must be a share in [0, 1]; got {value!r:.80}")
    return [_tagged(row, "text", labels, where, "er_prm")]


def _tagged(row: Row, name: str, labels: list[float], where: str, layout: str) -> StepRow:
    texts = _split(field(row, name, str, where), MARK, labels, f"{where}, field {name!r}")
    prompt, steps = _numbered(texts, where)
    kept = {key: value for key, value in row.items() if key not in (name, "value")}
    return step_row(prompt, steps, labels, provenance={"format": layout, **kept})


def _split(text: str, mark: str, labels: list[float], where: str) -> list[str]:
    """The steps before each tag; the tag behind the last step may be missing."""
    texts = text.split(mark)
    if not texts[-1].strip():
        texts.pop()
    if len(texts) != len(labels) or not labels:
        raise DataError(f"{where}: has {len(texts)} steps by {mark!r}, but there are {len(labels)} labels")
    return texts


def openr(row: Row, where: str) -> list[StepRow]:
    """Question and tagged steps apart; the tag is `ки` or, by default of openr, five line breaks.

    `labels` of 1 and 0 (its older files) are read too. A process that begins with the question (what openr makes of
    MATH-APS) loses it there.
    """
    question, process = field(row, "question", str, where), field(row, "process", str, where)
    name = "labels" if "labels" in row and "label" not in row else "label"
    labels = [sign(value, f"{where}, field {name!r}[{n}]") for n, value in enumerate(field(row, name, list, where))]
    if question and process.startswith(question):
        process = process[len(question) :]
    steps = _split(process, MARK if MARK in process else OPENR_MARK, labels, f"{where}, field 'process'")
    kept = {key: value for key, value in row.items() if key not in ("question", "process", name)}
    return [step_row(question, [step.strip() for step in steps], labels, provenance={"format": "openr", **kept})]


def rlhflow(row: Row, where: str) -> list[StepRow]:
    """Turns of a user (question and first step, then a step each) and an assistant (+ or -)."""
    turns = field(row, "conversations", list, where)
    if not turns or len(turns) % 2:
        raise DataError(f"{where}, field 'conversations': must be pairs of user and assistant; got {len(turns)} turns")
    texts, labels = [], []
    for number, (user, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True), start=1):
        place = f"{where}, field 'conversations', pair {number}"
        text = field(user, "content", str, place)
        given = field(answer, "content", str, place).strip()
        if user.get("role") != "user" or answer.get("role") != "assistant" or given not in ("+", "-"):
            raise DataError(f"{where}, field 'conversations': pair {number} must be a user's step and + or -")
        texts.append(text)
        labels.append(float(given == "+"))
    prompt, steps = _numbered(texts, where)
    return [step_row(prompt, steps, labels, provenance={"format": "rlhflow"})]


def processbench(row: Row, where: str) -> list[StepRow]:
    """Steps up to the first error are labelled; what comes after it is not known and stays unlabelled."""
    steps = field(row, "steps", list, where)
    first = field(row, "label", int, where)
    if not steps or not all(isinstance(step, str) for step in steps) or not -1 <= first < len(steps):
        raise DataError(
            f"{where}, field 'label': must be -1 or the index of one of the {len(steps)} steps; got {first}"
        )
    labels: list[float | None] = [1.0] * len(steps)
    if first >= 0:
        labels[first:] = [0.0] + [None] * (len(steps) - first - 1)
    kept = {key: row.get(key) for key in ("generator", "final_answer_correct")}
    return [
        step_row(
            field(row, "problem", str, where),
            steps,
            labels,
            problem_id=str(row.get("id", "")),
            provenance={"format": "processbench", **kept},
        )
    ]


def read_public(path: str | os.PathLike[str], layout: str, **options: Any) -> list[StepRow]:
    """All rows of a file in one of the layouts above; errors name file, line and field.

    `options` are those of the layout's reader: `neutral`, `branches` and `quality_control` for prm800k, `trials` for
    math_aps and math_aps_tree.
    """
    if layout not in READERS and layout != "stepwise":
        raise ConfigError(f"there is no layout {layout!r}; take one of {', '.join([*READERS, 'stepwise'])}")
    known = list(inspect.signature(READERS[layout]).parameters)[2:] if layout in READERS else []
    for name in options:
        if name not in known:
            raise ConfigError(f"the layout {layout!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
    if layout == "stepwise":
        return read_stepwise(path)
    return [made for where, row in _rows(Path(path)) for made in READERS[layout](row, where, **options)]


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of JSON Lines, or of a file that is one JSON list of rows."""
    listed = b""
    # What cannot be read here is reported by `numbered_rows`, in its words.
    with contextlib.suppress(OSError, EOFError, zlib.error), open_bytes(path) as stream:
        begin = stream.read(64).removeprefix(b"\xef\xbb\xbf")
        listed = begin + stream.read() if begin.lstrip()[:1] == b"[" else b""
    if not listed:
        for number, row in numbered_rows(path):
            yield f"{path}, line {number}", row
        return
    for number, row in enumerate(parse_json(listed, str(path)), start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: must be a JSON object; got {row!r:.80}")
        yield f"{path}, row {number}", row


READERS: dict[str, Callable[..., list[StepRow]]] = {
    "math_shepherd": math_shepherd, "openrlhf": openrlhf, "er_prm": er_prm, "openr": openr, "rlhflow": rlhflow,
    "processbench": processbench, "math_aps": math_aps, "math_aps_tree": math_aps_tree, "prm800k": prm800k,
}  # fmt: skip
