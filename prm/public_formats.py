r"""Step-labelled data of other projects, in and out of our rows.

    math_shepherd   {"input": "q Step 1: ... ки\nStep 2: ... ки", "label": the same with + and -, "task"}
    prm800k         {"question": {...}, "label": {"steps": [{"completions": [{text, rating}], "chosen_completion"}]}}
    math_aps        {"question", "final_answer", "reasoning_steps": [{"solution_prefix", "mc_value"}]}
    math_aps_tree   {"question", "final_answer", "reasoning_steps": {"text", "mc_value", "children": [...]}}
    processbench    {"id", "generator", "problem", "steps", "final_answer_correct", "label": first error or -1}
    rlhflow         {"conversations": [user: "q Step 1: ...", assistant: "+", user: "Step 2: ...", assistant: "-"]}

One row of theirs can hold several of ours (alternatives, leaves of a tree). A step of theirs with blank lines in it
becomes several of ours of which only the last is labelled, so that texts stay as they are. What has no place in our
fields (task, generator, ...) is kept in `provenance`, and writing puts it back. Ratings of PRM800K are -1, 0, 1; what
0 ("neutral") means is a flag, as the field is divided: the paper counts it as good, TRL as bad.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from prm.formats import StepRow
from verifiers.errors import ConfigError, DataError
from verifiers.jsonl import numbered_rows
from verifiers.steps import split_steps

Row = Mapping[str, Any]
MARK = "ки"
"""Math-Shepherd's step tag."""
Neutral: TypeAlias = Literal["good", "bad", "drop"]
"""What a rating of 0 means."""
Branches: TypeAlias = Literal["terminal", "chosen"]
"""What becomes of completions that were not chosen."""
_FIRST = re.compile(r"\s*Step 1: ?")


def _row(prompt: str, steps: list[str], labels: list[float | None], *, trials: int = 1, **more: Any) -> StepRow:
    """Our row; a label is a share of `trials`, None an unlabelled step."""
    texts: list[str] = []
    shares: list[float | None] = []
    for step, label in zip(steps, labels, strict=True):
        parts = [part.text for part in split_steps(step)] or [step]
        texts += parts
        shares += [None] * (len(parts) - 1) + [label]
    return StepRow(
        prompt=prompt,
        completions=tuple(texts),
        successes=tuple(0.0 if share is None else _count(share * trials) for share in shares),
        trials=tuple(0 if share is None else trials for share in shares),
        **more,
    )


def _count(value: float) -> float:
    """A number of successes without the dust of a division."""
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value


def _field(row: Row, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; it has {', '.join(sorted(map(str, row)))}")
    if not isinstance(row[name], kind) or (isinstance(row[name], bool) and bool not in _kinds(kind)):
        wanted = " or ".join(k.__name__ for k in _kinds(kind))
        raise DataError(f"{where}, field {name!r}: must be {wanted}; got {row[name]!r:.80}")
    return row[name]


def _kinds(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _share(row: Row, name: str, where: str) -> float:
    value = _field(row, name, (int, float), where)
    if not 0 <= value <= 1:
        raise DataError(f"{where}, field {name!r}: must be a share in [0, 1]; got {value!r}")
    return float(value)


def math_shepherd(row: Row, where: str) -> list[StepRow]:
    """One response; `Step 1:` must stand once, and every step must have its + or -."""
    text, labelled = _field(row, "input", str, where), _field(row, "label", str, where)
    parts = text.split(MARK)
    if parts[-1].strip():
        raise DataError(f"{where}, field 'input': its last step has no {MARK!r}: {parts[-1]!r:.80}")
    labels: list[float | None] = []
    at = 0
    for number, part in enumerate(parts[:-1], start=1):
        sign = labelled[at + len(part) : at + len(part) + 1]
        if labelled[at : at + len(part)] != part or sign not in ("+", "-"):
            raise DataError(f"{where}, field 'label': step {number} does not repeat the input with + or - at its end")
        labels.append(float(sign == "+"))
        at += len(part) + 1
    prompt, steps = _numbered(parts[:-1], where)
    return [_row(prompt, steps, labels, provenance={"format": "math_shepherd", "task": row.get("task")})]


def _numbered(parts: list[str], where: str) -> tuple[str, list[str]]:
    """(prompt, steps) where the first part holds both, divided by `Step 1:`."""
    found = list(_FIRST.finditer(parts[0])) if parts else []
    if len(found) != 1:
        raise DataError(
            f"{where}: 'Step 1: ' must stand once, between question and first step; it stands {len(found)} times"
        )
    first = found[0]
    steps = [parts[0][first.start() :].strip(), *(part.strip() for part in parts[1:])]
    return parts[0][: first.start()], steps


def to_math_shepherd(row: StepRow) -> dict[str, Any]:
    """A Math-Shepherd row; hard labels (any success is +). Unlabelled steps cannot be written."""
    signs = _signs(row, "Math-Shepherd")
    lines = [f"{step} {{}}" for step in row.completions]
    shape = f"{_text(row)} " + "\n".join(lines).replace("{}", "\0")
    parts = shape.split("\0")
    label = "".join(part + sign for part, sign in zip(parts, [*signs, ""], strict=True))
    return {"input": MARK.join(parts), "label": label, "task": row.provenance.get("task")}


def _signs(row: StepRow, name: str) -> list[str]:
    labels = row.labels("hard")
    if None in labels:
        raise DataError(
            f"{name} rows have a label on every step; step {labels.index(None) + 1} of problem "
            f"{row.problem_id!r} has none; drop the row or write the stepwise layout"
        )
    return ["+" if label else "-" for label in labels]


def _text(row: StepRow) -> str:
    if isinstance(row.prompt, str):
        return row.prompt
    return "\n".join(str(message["content"]) for message in row.prompt)


def rlhflow(row: Row, where: str) -> list[StepRow]:
    """Turns of a user (question and first step, then a step each) and an assistant (+ or -)."""
    turns = _field(row, "conversations", list, where)
    if not turns or len(turns) % 2:
        raise DataError(f"{where}, field 'conversations': must be pairs of user and assistant; got {len(turns)} turns")
    parts, labels = [], []
    for number, (user, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True), start=1):
        sign = str(answer.get("content", "")).strip()
        if user.get("role") != "user" or answer.get("role") != "assistant" or sign not in ("+", "-"):
            raise DataError(f"{where}, field 'conversations': pair {number} must be a user's step and + or -")
        parts.append(str(user["content"]))
        labels.append(float(sign == "+"))
    prompt, steps = _numbered(parts, where)
    return [_row(prompt, steps, list(labels), provenance={"format": "rlhflow"})]


def to_rlhflow(row: StepRow) -> dict[str, Any]:
    """Turns; hard labels."""
    steps = [f"{_text(row)} {row.completions[0]}", *row.completions[1:]]
    turns = [
        [{"role": "user", "content": step}, {"role": "assistant", "content": sign}]
        for step, sign in zip(steps, _signs(row, "RLHFlow"), strict=True)
    ]
    return {"conversations": [turn for pair in turns for turn in pair]}


def processbench(row: Row, where: str) -> list[StepRow]:
    """Steps up to the first error are labelled; what comes after it is not known and stays unlabelled."""
    steps = _field(row, "steps", list, where)
    first = _field(row, "label", int, where)
    if not steps or not all(isinstance(step, str) for step in steps) or not -1 <= first < len(steps):
        raise DataError(
            f"{where}, field 'label': must be -1 or the index of one of the {len(steps)} steps; got {first}"
        )
    labels: list[float | None] = [1.0] * len(steps)
    if first >= 0:
        labels[first:] = [0.0] + [None] * (len(steps) - first - 1)
    kept = {key: row.get(key) for key in ("generator", "final_answer_correct", "label")}
    return [
        _row(
            _field(row, "problem", str, where),
            steps,
            labels,
            problem_id=str(row.get("id", "")),
            provenance={"format": "processbench", "steps": list(map(str, steps)), **kept},
        )
    ]


def to_processbench(row: StepRow) -> dict[str, Any]:
    """First wrong step (no trial succeeded) as the label; -1 where there is none."""
    kept = row.provenance
    labels = row.labels("hard")
    return {
        "id": row.problem_id,
        "generator": kept.get("generator"),
        "problem": _text(row),
        "steps": list(kept.get("steps", row.completions)),
        "final_answer_correct": kept.get("final_answer_correct"),
        "label": kept["label"] if "label" in kept else (labels.index(False) if False in labels else -1),
    }


def math_aps(row: Row, where: str, *, trials: int = 16) -> list[StepRow]:
    """Prefixes with their share of right roll-outs; each row is the chain from the question to one leaf."""
    question = _field(row, "question", str, where)
    nodes = _field(row, "reasoning_steps", list, where)
    values: dict[str, float] = {}
    for number, node in enumerate(nodes):
        place = f"{where}, 'reasoning_steps'[{number}]"
        prefix = _field(node, "solution_prefix", str, place)
        if not prefix.startswith(question):
            raise DataError(f"{place}, field 'solution_prefix': must begin with the question; got {prefix!r:.80}")
        values[prefix] = _share(node, "mc_value", place)
    ordered = sorted(values)  # a prefix comes right before what extends it
    chain: list[str] = []
    rows: list[StepRow] = []
    for prefix, following in itertools.zip_longest(ordered, ordered[1:]):
        while chain and not prefix.startswith(chain[-1]):
            chain.pop()
        chain.append(prefix)
        if prefix != question and not (following or "").startswith(prefix):
            rows.append(_chain(row, question, chain, values, trials, len(rows)))
    return rows


def _chain(row: Row, question: str, chain: list[str], values: dict[str, float], trials: int, number: int) -> StepRow:
    steps, labels = [], []
    before = question
    for prefix in chain:
        step = prefix[len(before) :].strip()
        if step:
            steps.append(step)
            labels.append(values[prefix])
        before = prefix
    return _row(question, steps, list(labels), trials=trials, **_aps(row, number))


def _aps(row: Row, number: int) -> dict[str, Any]:
    kept = {"format": "math_aps", "final_answer": row.get("final_answer")}
    return {"problem_id": str(row.get("question_id", "")), "sample": number, "provenance": kept}


def math_aps_tree(row: Row, where: str, *, trials: int = 16) -> list[StepRow]:
    """Nested nodes; each row is the path from the root to one leaf."""
    question = _field(row, "question", str, where)
    root = _field(row, "reasoning_steps", dict, where)
    rows: list[StepRow] = []
    stack: list[tuple[Row, list[str], list[float | None]]] = [(root, [], [])]
    while stack:
        node, steps, labels = stack.pop()
        children = _field(node, "children", list, where)
        if node is not root:
            steps = [*steps, _field(node, "text", str, where).strip()]
            labels = [*labels, _share(node, "mc_value", where)]
        if not children and steps:
            rows.append(_row(question, steps, labels, trials=trials, **_aps(row, len(rows))))
        stack.extend((child, steps, labels) for child in reversed(children))
    return rows


def prm800k(
    row: Row,
    where: str,
    *,
    neutral: Neutral = "good",
    branches: Branches = "terminal",
    quality_control: bool = False,
) -> list[StepRow]:
    """Ratings of human labellers, phase 1 (several completions a step) and phase 2 (one).

    `neutral` says what rating 0 is: good (the paper), bad (TRL) or unlabelled. `branches`: `terminal` makes each
    completion that was not chosen a row of its own behind the chosen steps (TRL), `chosen` keeps the chosen path alone.
    Rows of quality control and screening are left out unless `quality_control`.
    """
    if neutral not in get_args(Neutral) or branches not in get_args(Branches):
        raise ConfigError(f"neutral must be one of {get_args(Neutral)} and branches one of {get_args(Branches)}")
    if not quality_control and (row.get("is_quality_control_question") or row.get("is_initial_screening_question")):
        return []
    question = _field(row, "question", dict, where)
    label = _field(row, "label", dict, where)
    prompt = _field(question, "problem", str, f"{where}, 'question'")
    kept = {
        "format": "prm800k",
        "finish_reason": label.get("finish_reason"),
        "ground_truth_answer": question.get("ground_truth_answer"),
        "generation": row.get("generation"),
    }
    path: list[tuple[str, float | None]] = []
    rows: list[StepRow] = []

    def add(steps: list[tuple[str, float | None]]) -> None:
        rows.append(_row(prompt, [s for s, _ in steps], [r for _, r in steps], sample=len(rows), provenance=kept))

    for number, step in enumerate(_field(label, "steps", list, f"{where}, 'label'")):
        place = f"{where}, 'label'.'steps'[{number}]"
        completions = _field(step, "completions", list, place) if step.get("completions") is not None else []
        rated = [(_field(c, "text", str, place), _rating(c, neutral, place)) for c in completions]
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        if branches == "terminal":
            for index, alternative in enumerate(rated):
                if index != chosen:
                    add([*path, alternative])
        if chosen is not None:
            if not 0 <= chosen < len(rated):
                raise DataError(f"{place}, field 'chosen_completion': must be an index of {len(rated)}; got {chosen!r}")
            path.append(rated[chosen])
        elif human is not None:
            path.append((_field(human, "text", str, place), 1.0))  # written to be right
        else:
            if branches == "chosen" and rated:
                path.append(rated[0])
            break
    else:
        if path:
            add(path)
        return rows
    if branches == "chosen" and path:
        add(path)
    return rows


def _rating(completion: Row, neutral: Neutral, where: str) -> float | None:
    rating = completion.get("rating")
    if rating not in (-1, 0, 1, None):
        raise DataError(f"{where}, field 'rating': must be -1, 0, 1 or null; got {rating!r}")
    if rating == 0:
        return {"good": 1.0, "bad": 0.0, "drop": None}[neutral]
    return None if rating is None else float(rating == 1)


def read_public(path: str | os.PathLike[str], layout: str, **options: Any) -> list[StepRow]:
    """All rows of a JSON Lines file in one of the layouts above; errors name file, line and field."""
    if layout not in READERS:
        raise ConfigError(f"there is no layout {layout!r}; take one of {', '.join(READERS)}")
    reader = READERS[layout]
    return [
        made for number, row in numbered_rows(Path(path)) for made in reader(row, f"{path}, line {number}", **options)
    ]


READERS: dict[str, Callable[..., list[StepRow]]] = {
    "math_shepherd": math_shepherd, "rlhflow": rlhflow, "processbench": processbench, "math_aps": math_aps,
    "math_aps_tree": math_aps_tree, "prm800k": prm800k,
}  # fmt: skip
