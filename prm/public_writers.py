r"""Our rows in the layouts of other projects: the way back from `prm/public_formats.py` and `prm/public_trees.py`.

Reading what was written gives the rows again, as far as the layout has words for them: the labels always, the text of
prompt and steps, and what the readers keep in `provenance`; counts only where MATH-APS keeps them, and token ids,
undecided trials and stop reasons nowhere but in the stepwise layout. A label that a layout cannot express (a share
where there is only + and -, a step without label, a right step behind the first wrong one) is an error; `lossy` writes
what can be said of it: any success is +, the first wrong step, the share without its prior.

    math_shepherd, rlhflow   hard labels; an unlabelled step becomes part of the labelled one behind it; steps get
                             their "Step k: " where they have none, as the layout needs it to find the question's end
    processbench             the first wrong step
    prm800k                  ratings 1, -1 and null; 0 where it was 0; rows of one origin become one row again
    math_aps                 share and number of roll-outs of every prefix, once
    math_aps_tree            neighbouring rows share the nodes in which they agree
    stepwise                 everything
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from prm.formats import StepRow, write_rows
from prm.public_fields import place, prompt_text, their_steps
from prm.public_formats import FIRST, MARK
from prm.public_trees import LABEL_FIELDS, QUESTION_FIELDS, ROLLOUTS, ROW_FIELDS
from verifiers.errors import ConfigError, DataError
from verifiers.jsonl import write_jsonl
from verifiers.steps import BLANK_LINE

Json: TypeAlias = dict[str, Any]


def _signs(row: StepRow, name: str, *, lossy: bool) -> list[tuple[str, bool | None]]:
    """(step of theirs, hard label); refuses a share strictly between 0 and 1 unless something says what it is."""
    soft, hard = row.labels("soft"), row.labels("hard")
    found: list[tuple[str, bool | None]] = []
    for text, index in their_steps(row):
        value, label = soft[index], hard[index]
        if value is not None and 0 < value < 1 and not row.hard and not lossy:
            raise DataError(
                f"{name} has labels of right and wrong only; {place(row)} has {value:.4g} at step {index + 1}; "
                "write the stepwise layout, or set lossy to write any success as right"
            )
        found.append((text, None if label is None else bool(label)))
    return found


def _numbered_steps(row: StepRow, name: str, *, lossy: bool) -> tuple[str, list[str], list[str]]:
    """(prompt, steps, + or - a step) for layouts that glue the question to "Step 1: "."""
    signs = _signs(row, name, lossy=lossy)
    for number, (_, label) in enumerate(signs, start=1):
        if label is None:
            raise DataError(
                f"{name} has a label on every step; {place(row)} has none at step {number} of {len(signs)}, nor "
                "behind it; drop the row or write the stepwise layout"
            )
    prompt, steps = prompt_text(row, name, lossy=lossy), [text for text, _ in signs]
    if not FIRST.match(steps[0]):
        steps = [f"Step {number}: {text}" for number, text in enumerate(steps, start=1)]
    if len(FIRST.findall(f"{prompt} {steps[0]}")) != 1:
        raise DataError(f"{name} finds the question's end by 'Step 1: '; {place(row)} has it twice; drop the row")
    return prompt, steps, ["+" if label else "-" for _, label in signs]


def to_math_shepherd(row: StepRow, *, lossy: bool = False) -> Json:
    """One response."""
    prompt, steps, signs = _numbered_steps(row, "Math-Shepherd", lossy=lossy)
    if MARK in prompt or any(MARK in step for step in steps):
        raise DataError(f"Math-Shepherd marks steps with {MARK!r}; {place(row)} has it in its text; drop the row")
    lines = [f"{prompt} {steps[0]} ", *(f"\n{step} " for step in steps[1:])]
    label = "".join(line + sign for line, sign in zip(lines, signs, strict=True))
    return {"input": "".join(line + MARK for line in lines), "label": label, "task": row.provenance.get("task")}


def to_rlhflow(row: StepRow, *, lossy: bool = False) -> Json:
    """One response as turns."""
    prompt, steps, signs = _numbered_steps(row, "RLHFlow", lossy=lossy)
    turns = [
        turn
        for step, sign in zip([f"{prompt} {steps[0]}", *steps[1:]], signs, strict=True)
        for turn in ({"role": "user", "content": step}, {"role": "assistant", "content": sign})
    ]
    return {"conversations": turns}


def to_processbench(row: StepRow, *, lossy: bool = False) -> Json:
    """One response with its first wrong step, -1 where there is none; nothing can be said of what is behind it."""
    signs = _signs(row, "ProcessBench", lossy=lossy)
    labels = [label for _, label in signs]
    first = labels.index(False) if False in labels else -1
    if None in labels[: first if first >= 0 else len(labels)]:
        raise DataError(
            f"ProcessBench says that every step before the first wrong one is right; {place(row)} has no label at "
            f"step {labels.index(None) + 1} of {len(labels)}; drop the row or write the stepwise layout"
        )
    if first >= 0 and True in labels[first:] and not lossy:
        raise DataError(
            f"ProcessBench knows the first wrong step alone; {place(row)} has a right one behind step {first + 1}; "
            "write the stepwise layout, or set lossy to leave it out"
        )
    return {
        "id": row.problem_id,
        "generator": row.provenance.get("generator"),
        "problem": prompt_text(row, "ProcessBench", lossy=lossy),
        "steps": [text for text, _ in signs],
        "final_answer_correct": row.provenance.get("final_answer_correct"),
        "label": first,
    }


def to_prm800k(rows: Sequence[StepRow], *, lossy: bool = False) -> Json:
    """One row of the rows that one came to; a row of another origin is a chosen path of single completions."""
    steps: list[Json] = []
    for row in rows:
        signs = _signs(row, "PRM800K", lossy=lossy)
        counts = [row.trials[index] for _, index in their_steps(row)]
        for depth, ((text, label), kept) in enumerate(zip(signs, _choices(row, len(signs)), strict=True)):
            if depth == len(steps):
                steps.append({"completions": {}, "human_completion": None, "chosen_completion": kept["chosen"]})
            if kept["index"] is None:
                if not label:
                    raise DataError(
                        f"PRM800K has no rating for what a labeller wrote, it is right; {place(row)} has another "
                        f"label at step {depth + 1}; drop the row or write the stepwise layout"
                    )
                steps[depth]["human_completion"] = {"text": text, "rating": None, "source": "human", "flagged": False}
            else:
                neutral = kept.get("rating") == 0 and counts[depth] <= 1
                rating = 0 if neutral else None if label is None else 1 if label else -1
                said = {"text": text, "rating": rating, "flagged": kept.get("flagged")}
                steps[depth]["completions"].setdefault(kept["index"], said)
    for step in steps:  # completions whose rows were dropped leave no gap
        indices = sorted(step["completions"])
        chosen = step["chosen_completion"]
        step["chosen_completion"] = indices.index(chosen) if chosen in indices else None
        step["completions"] = [step["completions"][index] for index in indices]
    origin = rows[0].provenance
    finish = "solution" if steps[-1]["chosen_completion"] is not None else "found_error"
    return {
        **{name: origin.get(name, False if name.startswith("is_") else None) for name in ROW_FIELDS},
        "question": {"problem": prompt_text(rows[0], "PRM800K", lossy=lossy), "ground_truth_answer": None}
        | {name: origin[name] for name in QUESTION_FIELDS if name in origin},
        "label": {"steps": steps, "total_time": None, "finish_reason": finish}
        | {name: origin[name] for name in LABEL_FIELDS if name in origin},
    }


def _choices(row: StepRow, count: int) -> list[Json]:
    """What PRM800K said of each step, or a single chosen completion a step."""
    kept = row.provenance.get("choices")
    if row.provenance.get("format") == "prm800k" and isinstance(kept, list) and len(kept) == count:
        return kept
    return [{"index": 0, "chosen": 0}] * count


def _origin(rows: Iterable[StepRow]) -> list[list[StepRow]]:
    """Neighbouring rows of one PRM800K row: equal in all but the choices, with rising sample numbers."""
    groups: list[list[StepRow]] = []
    for row in rows:
        last = groups[-1][-1] if groups else None
        shared = _shared(row)
        if last is not None and shared is not None and shared == _shared(last) and row.sample > last.sample:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _shared(row: StepRow) -> tuple[Any, ...] | None:
    if row.provenance.get("format") != "prm800k" or "choices" not in row.provenance:
        return None
    kept = {name: value for name, value in row.provenance.items() if name not in ("choices", "steps")}
    return (row.prompt, row.problem_id, kept)


def _nodes(row: StepRow, name: str, *, lossy: bool) -> list[Json]:
    """A node a step of theirs: text, share, number of roll-outs, and what the reader kept."""
    if (row.prior or row.hard) and not lossy:
        raise DataError(
            f"{name} has shares of roll-outs only; {place(row)} has a prior or hard labels beside them; "
            "write the stepwise layout, or set lossy to leave them out"
        )
    steps = their_steps(row)
    kept = row.provenance.get("nodes")
    extras = kept if isinstance(kept, list) and len(kept) == len(steps) else [{}] * len(steps)
    nodes = []
    for (text, index), extra in zip(steps, extras, strict=True):
        if not row.trials[index]:
            raise DataError(
                f"{name} has a share of roll-outs at every step; {place(row)} has no trials at step {index + 1} of "
                f"{len(row.completions)}; drop the row or write the stepwise layout"
            )
        share = row.successes[index] / row.trials[index]
        nodes.append({"text": text, "mc_value": share, **extra, ROLLOUTS: row.trials[index]})
    return nodes


def _question(rows: Sequence[StepRow], name: str, *, lossy: bool) -> Json:
    identity = rows[0].problem_id
    number = int(identity) if identity.isdecimal() and str(int(identity)) == identity else identity
    question = {
        "question": prompt_text(rows[0], name, lossy=lossy),
        "final_answer": rows[0].provenance.get("final_answer"),
    }
    return question | ({"question_id": number} if identity else {})


def to_math_aps(rows: Sequence[StepRow], *, lossy: bool = False) -> Json:
    """One row of a problem's rows: every prefix once, with one share."""
    row = _question(rows, "MATH-APS", lossy=lossy)
    known: dict[str, Json] = {}
    if "root" in rows[0].provenance:
        known[row["question"]] = dict(rows[0].provenance["root"])
    for source in rows:
        prefix = row["question"]
        for node in _nodes(source, "MATH-APS", lossy=lossy):
            prefix += BLANK_LINE + node.pop("text")
            if known.setdefault(prefix, node) != node and not lossy:
                raise DataError(
                    f"MATH-APS has one label a prefix; {place(source)} gives {node['mc_value']:.4g} of "
                    f"{node[ROLLOUTS]} and another row {known[prefix]['mc_value']:.4g} of {known[prefix][ROLLOUTS]} "
                    f"to the prefix that ends in {prefix[-40:]!r}; write math_aps_tree, or set lossy to keep the first"
                )
    return row | {"reasoning_steps": [{"solution_prefix": prefix, **node} for prefix, node in known.items()]}


def to_math_aps_tree(rows: Sequence[StepRow], *, lossy: bool = False) -> Json:
    """One row of a problem's rows: a tree whose leaves, from first to last, are the ends of the rows."""
    row = _question(rows, "MATH-APS tree", lossy=lossy)
    root: Json = {"text": row["question"], "children": [], **rows[0].provenance.get("root", {})}
    for source in rows:
        at = root
        *inner, leaf = _nodes(source, "MATH-APS tree", lossy=lossy)
        for node in inner:
            last = at["children"][-1] if at["children"] else {}
            # A leaf is the end of a row: what has children is never joined to it.
            if not last.get("children") or {**last, "children": []} != {**node, "children": []}:
                last = {**node, "children": []}
                at["children"].append(last)
            at = last
        at["children"].append({**leaf, "children": []})
    return row | {"reasoning_steps": root}


def _by_problem(rows: Iterable[StepRow]) -> list[list[StepRow]]:
    """Rows of one problem together, in the order in which problems first appear."""
    groups: dict[tuple[str, str], list[StepRow]] = {}
    for row in rows:
        groups.setdefault((row.problem_id, repr(row.prompt)), []).append(row)
    return list(groups.values())


WRITERS: dict[str, tuple[Callable[..., Iterable[Any]], Callable[..., Json]]] = {
    "math_shepherd": (list, to_math_shepherd),
    "rlhflow": (list, to_rlhflow),
    "processbench": (list, to_processbench),
    "prm800k": (_origin, to_prm800k),
    "math_aps": (_by_problem, to_math_aps),
    "math_aps_tree": (_by_problem, to_math_aps_tree),
}
"""How rows are put together, and what is written of each or of each group."""


def write_public(path: str | os.PathLike[str], rows: Sequence[StepRow], layout: str, *, lossy: bool = False) -> int:
    """Write rows as JSON Lines (`.gz` compresses) in one of the layouts above; returns the number of lines.

    Raises ConfigError for a layout that is not written, DataError for a row that it cannot express (then nothing is
    written); `lossy` writes what can be said of it.
    """
    if layout == "stepwise":
        return write_jsonl(path, write_rows(rows))
    if layout not in WRITERS:
        raise ConfigError(f"the layout {layout!r} is not written; take one of {', '.join([*WRITERS, 'stepwise'])}")
    together, write = WRITERS[layout]
    return write_jsonl(path, (write(item, lossy=lossy) for item in together(rows)))
