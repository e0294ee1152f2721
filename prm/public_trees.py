r"""Layouts of which one row holds several responses: PRM800K and MATH-APS, flat and as a tree.

    prm800k         {"question": {...}, "label": {"steps": [{"completions": [{text, rating}], "chosen_completion"}]}}
    math_aps        {"question", "final_answer", "reasoning_steps": [{"solution_prefix", "mc_value"}]}
    math_aps_tree   {"question", "final_answer", "reasoning_steps": {"text", "mc_value", "children": [...]}}

Ratings of PRM800K are -1, 0, 1; what 0 ("neutral") means is a flag, as the field is divided: the paper and openr count
it as good, TRL as bad. What becomes of alternatives to a step is a flag too. MATH-APS gives shares of roll-outs; AMCS
adds how many there were (`total_mc_rollouts_for_node`). Where that is missing, the number is taken as the least
multiple of 16 of which every share of the row is a whole count. Other fields of a node (AMCS's
`incorrect_continuations`, `N_visits`) are kept for each step in `provenance["nodes"]`, and the question's own share,
the problem's pass rate, in `provenance["root"]`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from prm.formats import StepRow
from prm.public_fields import Row, field, share, step_row
from verifiers.errors import ConfigError, DataError
from verifiers.steps import BLANK_LINE

Neutral: TypeAlias = Literal["good", "bad", "drop"]
"""What a rating of 0 means."""
Branches: TypeAlias = Literal["terminal", "chosen", "cross"]
"""What becomes of completions that were not chosen."""
CROSS_LIMIT = 10_000
"""Most rows that one row may become under `cross`."""
QUESTION_FIELDS = (
    "ground_truth_answer", "ground_truth_solution", "pre_generated_steps", "pre_generated_answer",
    "pre_generated_verifier_score",
)  # fmt: skip
LABEL_FIELDS = ("total_time", "finish_reason")
ROW_FIELDS = (
    "labeler", "timestamp", "generation", "is_quality_control_question", "is_initial_screening_question"
)  # fmt: skip
NODE_FIELDS = {"solution_prefix", "text", "mc_value", "children", "total_mc_rollouts_for_node"}
"""What is read of a node; the rest is kept."""
ROLLOUTS = "total_mc_rollouts_for_node"


class _Choice(NamedTuple):
    """A completion of a step: its text, its label, and what PRM800K says of it."""

    text: str
    label: float | None
    kept: dict[str, Any]


def prm800k(
    row: Row,
    where: str,
    *,
    neutral: Neutral = "good",
    branches: Branches = "terminal",
    quality_control: bool = False,
) -> list[StepRow]:
    """Ratings of human labellers, phase 1 (several completions a step) and phase 2 (one, more at the first error).

    `neutral` says what rating 0 is: good (the paper, openr), bad (TRL) or unlabelled. `branches`: `terminal` makes
    each completion that was not chosen a row of its own behind the chosen steps (TRL), `chosen` keeps the chosen path
    alone, `cross` makes every combination of the steps' completions a row (openr; steps that a labeller wrote are left
    out, and labels behind an alternative are those of the chosen path). Rows of quality control and of screening are
    left out unless `quality_control`.
    """
    if neutral not in get_args(Neutral) or branches not in get_args(Branches):
        raise ConfigError(
            f"neutral must be one of {get_args(Neutral)} and branches one of {get_args(Branches)}; "
            f"got {neutral!r} and {branches!r}"
        )
    if not quality_control and (row.get("is_quality_control_question") or row.get("is_initial_screening_question")):
        return []
    question = field(row, "question", dict, where)
    label = field(row, "label", dict, where)
    prompt = field(question, "problem", str, f"{where}, 'question'")
    sources = ((question, QUESTION_FIELDS), (label, LABEL_FIELDS), (row, ROW_FIELDS))
    kept = {name: source.get(name) for source, names in sources for name in names}
    shared = {"format": "prm800k"} | {name: value for name, value in kept.items() if value not in (None, False)}
    steps = [
        _choices(step, neutral, f"{where}, 'label'.'steps'[{number}]")
        for number, step in enumerate(field(label, "steps", list, f"{where}, 'label'"))
    ]
    return [
        step_row(
            prompt,
            [choice.text for choice in path],
            [choice.label for choice in path],
            sample=number,
            provenance={**shared, "choices": [choice.kept for choice in path]},
        )
        for number, path in enumerate(_paths(steps, branches, where))
    ]


def _choices(step: Row, neutral: Neutral, where: str) -> tuple[list[_Choice], _Choice | None]:
    """(rated completions, the one taken)."""
    missing = isinstance(step, dict) and step.get("completions") is None
    given = [] if missing else field(step, "completions", list, where)
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    if chosen is not None and (not isinstance(chosen, int) or not 0 <= chosen < len(given)):
        raise DataError(f"{where}, field 'chosen_completion': must be an index of {len(given)}; got {chosen!r}")
    rated = []
    for index, completion in enumerate(given):
        place = f"{where}, 'completions'[{index}]"
        text, rating = field(completion, "text", str, place), completion.get("rating")
        if rating not in (-1, 0, 1, None) or isinstance(rating, bool):
            raise DataError(f"{place}, field 'rating': must be -1, 0, 1 or null; got {rating!r}")
        meaning = {-1: 0.0, 1: 1.0, None: None, 0: {"good": 1.0, "bad": 0.0, "drop": None}[neutral]}
        kept = {"index": index, "chosen": chosen, "rating": rating, "flagged": completion.get("flagged")}
        rated.append(_Choice(text, meaning[rating], kept))
    if chosen is not None:
        return rated, rated[chosen]
    if human is None:
        return rated, None
    written = field(human, "text", str, f"{where}, 'human_completion'")  # written to be right
    return rated, _Choice(written, 1.0, {"index": None, "chosen": None})


def _paths(
    steps: list[tuple[list[_Choice], _Choice | None]], branches: Branches, where: str
) -> Iterable[list[_Choice]]:
    if branches == "cross":
        sets = [rated for rated, _ in steps if rated]
        if math.prod(map(len, sets)) > CROSS_LIMIT:
            raise DataError(
                f"{where}, field 'label': the cross product of its completions has {math.prod(map(len, sets))} rows, "
                f"more than {CROSS_LIMIT}; take branches='terminal'"
            )
        yield from map(list, itertools.product(*sets)) if sets else ()
        return
    path: list[_Choice] = []
    shown = False  # whether the labels of the path stand in a row already
    for rated, taken in steps:
        others = [choice for choice in rated if choice is not taken] if branches == "terminal" else []
        yield from ([*path, choice] for choice in others)
        shown = bool(others)
        if taken is None:
            path += rated[:1] if branches == "chosen" else []
            break
        path.append(taken)
        shown = False
    if path and not shown:
        yield path


def math_aps(row: Row, where: str, *, trials: int | None = None) -> list[StepRow]:
    """Prefixes with their share of right roll-outs; each row is the chain from the question to one leaf.

    A prefix extends another one where a blank line follows that one; a prefix that stands twice was estimated twice,
    and the counts add. `trials` is the number of roll-outs of an estimate.
    """
    question = field(row, "question", str, where)
    estimates: dict[str, list[Row]] = {}
    for number, node in enumerate(field(row, "reasoning_steps", list, where)):
        place = f"{where}, 'reasoning_steps'[{number}]"
        prefix = field(node, "solution_prefix", str, place)
        if not prefix.startswith(question):
            raise DataError(f"{place}, field 'solution_prefix': must begin with the question; got {prefix!r:.80}")
        _check_share(node, place)
        estimates.setdefault(prefix, []).append(node)
    count = trials or _rollouts(itertools.chain.from_iterable(estimates.values()))
    nodes = {prefix: _pooled(found, count) for prefix, found in estimates.items()}
    parents = {prefix: _parent(prefix, question, nodes) for prefix in nodes if prefix != question}
    inner = set(parents.values())
    rows: list[StepRow] = []
    for leaf in parents:
        if leaf in inner:
            continue
        chain, prefix = [], leaf
        while prefix != question:
            text = prefix[len(parents[prefix]) :].strip()
            chain += [(text, nodes[prefix])] if text else []
            prefix = parents[prefix]
        if chain:
            rows.append(_aps(row, question, chain[::-1], nodes.get(question), count, "math_aps", len(rows)))
    return rows


def _parent(prefix: str, question: str, nodes: dict[str, Row]) -> str:
    """The longest known text of which `prefix` is the continuation behind a blank line."""
    at = prefix.rfind(BLANK_LINE)
    while at > len(question):
        if prefix[:at] in nodes:
            return prefix[:at]
        at = prefix.rfind(BLANK_LINE, 0, at + 1)
    return question


def math_aps_tree(row: Row, where: str, *, trials: int | None = None) -> list[StepRow]:
    """Nested nodes; each row is the path from the root to one leaf."""
    question = field(row, "question", str, where)
    root = field(row, "reasoning_steps", dict, where)
    paths: list[list[tuple[str, Row]]] = []
    seen: list[Row] = []
    stack: list[tuple[Row, list[tuple[str, Row]]]] = [(root, [])]
    while stack:
        node, path = stack.pop()
        children = field(node, "children", list, where)
        if node is not root or "mc_value" in node:
            _check_share(node, where)
        seen.append(node)
        if node is not root:
            path = [*path, (field(node, "text", str, where).strip(), node)]
        if not children and path:
            paths.append(path)
        stack.extend((child, path) for child in reversed(children))
    count = trials or _rollouts(seen)
    return [_aps(row, question, path, root, count, "math_aps_tree", number) for number, path in enumerate(paths)]


def _check_share(node: Row, where: str) -> None:
    """Null is a state that was never estimated; missing is an error."""
    if node.get("mc_value", 0) is not None:
        share(node, "mc_value", where)
    if node.get(ROLLOUTS) is not None and field(node, ROLLOUTS, int, where) < 0:
        raise DataError(f"{where}, field {ROLLOUTS!r}: must be 0 or more; got {node[ROLLOUTS]!r}")


def _rollouts(nodes: Iterable[Row]) -> int:
    """The least multiple of 16 of which every share is a whole count; 16 where there is none up to 128."""
    shares = [node["mc_value"] for node in nodes if node.get("mc_value") is not None and ROLLOUTS not in node]
    return next((n for n in range(16, 129, 16) if all(abs(s * n - round(s * n)) < 1e-6 for s in shares)), 16)


def _trials(node: Row, count: int) -> int:
    """A node without roll-outs of its own is a finished response (AMCS): judged once."""
    return max(1, node[ROLLOUTS]) if node.get(ROLLOUTS) is not None else count


def _pooled(found: list[Row], count: int) -> Row:
    known = [node for node in found if node.get("mc_value") is not None]
    if len(known) < 2:
        return (known or found)[0]
    total = sum(_trials(node, count) for node in known)
    mean = sum(node["mc_value"] * _trials(node, count) for node in known) / total
    return {**known[0], "mc_value": mean, ROLLOUTS: total}


def _aps(
    row: Row, question: str, path: list[tuple[str, Row]], root: Row | None, count: int, layout: str, number: int
) -> StepRow:
    kept: dict[str, Any] = {"format": layout, "final_answer": row.get("final_answer")}
    extras = [{name: value for name, value in node.items() if name not in NODE_FIELDS} for _, node in path]
    if any(extras):
        kept["nodes"] = extras
    if root is not None:
        kept["root"] = {name: value for name, value in root.items() if name not in NODE_FIELDS - {"mc_value", ROLLOUTS}}
    identity = row.get("question_id")
    return step_row(
        question,
        [text for text, _ in path],
        [node["mc_value"] for _, node in path],
        [_trials(node, count) for _, node in path],
        problem_id="" if identity is None else str(identity),
        sample=number,
        provenance=kept,
    )
