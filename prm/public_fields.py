"""How a row of another project's step labels is taken apart, and how rows of ours are put together again.

Fields are checked where they are read; an error names file, line and field. A step of theirs with blank lines in it
becomes several of ours of which only the last is labelled, so that texts stay as they are; `their_steps` is the
inverse: an unlabelled step belongs to the labelled one behind it. Where that would not give their texts back to the
character (other white space, a step of theirs without a label), the texts are kept in `provenance["steps"]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from prm.formats import StepRow
from verifiers.errors import DataError
from verifiers.steps import BLANK_LINE, split_steps

Row: TypeAlias = Mapping[str, Any]


def field(row: Row, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field that must be there and of a kind (true and false are no numbers)."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be an object with the field {name!r}; got {row!r:.80}")
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; it has {', '.join(sorted(map(str, row))) or 'none'}")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(row[name], kinds) or (isinstance(row[name], bool) and bool not in kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        raise DataError(f"{where}, field {name!r}: must be {wanted}; got {row[name]!r:.80}")
    return row[name]


def share(row: Row, name: str, where: str) -> float:
    """A field that must be a number in [0, 1]."""
    value = field(row, name, (int, float), where)
    if not 0 <= value <= 1:
        raise DataError(f"{where}, field {name!r}: must be a share in [0, 1]; got {value!r}")
    return float(value)


def sign(value: object, where: str) -> float:
    """1 for "+" (or 1, true), 0 for "-" (or 0, false)."""
    known = {"+": 1.0, "-": 0.0, 1: 1.0, 0: 0.0}
    if not isinstance(value, str | int) or value not in known:
        raise DataError(f"{where}: must be '+' or '-'; got {value!r:.80}")
    return known[value]


def step_row(
    prompt: str, steps: Sequence[str], labels: Sequence[float | None], trials: Sequence[int] | None = None, **more: Any
) -> StepRow:
    """Our row of their steps; a label is a share of `trials` (one a step where None), None an unlabelled step."""
    texts: list[str] = []
    counts: list[tuple[float, int]] = []
    for number, (step, label) in enumerate(zip(steps, labels, strict=True)):
        texts += parts(step)
        n = 0 if label is None else trials[number] if trials is not None else 1
        counts += [(0.0, 0)] * (len(texts) - len(counts) - 1) + [(whole((label or 0.0) * n), n)]
    row = StepRow(
        prompt=prompt,
        completions=tuple(texts),
        successes=tuple(s for s, _ in counts),
        trials=tuple(n for _, n in counts),
        **more,
    )
    if [text for text, _ in their_steps(row)] == list(steps):
        return row
    more["provenance"] = {**more.get("provenance", {}), "steps": list(steps)}
    return StepRow(prompt=prompt, completions=row.completions, successes=row.successes, trials=row.trials, **more)


def parts(text: str) -> list[str]:
    """A step of theirs as steps of ours."""
    return [step.text for step in split_steps(text)] or [text]


def whole(value: float) -> float:
    """A number of successes without the dust of a division."""
    return float(round(value)) if math.isclose(value, round(value), rel_tol=0, abs_tol=1e-6) else value


def their_steps(row: StepRow) -> list[tuple[str, int]]:
    """(text, index of our step that carries the label): labelled steps with the unlabelled ones before them.

    Unlabelled steps at the end stand each for itself.
    """
    kept = row.provenance.get("steps")
    if isinstance(kept, list) and all(isinstance(text, str) for text in kept):
        ends = [0]
        for text in kept:
            ends.append(ends[-1] + len(parts(text)))
        if tuple(part for text in kept for part in parts(text)) == row.completions:
            return [(text, end - 1) for text, end in zip(kept, ends[1:], strict=True)]
    found: list[tuple[str, int]] = []
    waiting: list[str] = []
    for index, (text, label) in enumerate(zip(row.completions, row.labels("soft"), strict=True)):
        waiting.append(text)
        if label is not None:
            found.append((BLANK_LINE.join(waiting), index))
            waiting = []
    first = len(row.completions) - len(waiting)
    return found + [(text, first + number) for number, text in enumerate(waiting)]


def prompt_text(row: StepRow, name: str, *, lossy: bool) -> str:
    """The prompt for a layout that knows text alone; several chat messages are refused unless `lossy`."""
    if isinstance(row.prompt, str):
        return row.prompt
    if len(row.prompt) != 1 and not lossy:
        raise DataError(
            f"{name} has one text as prompt; {place(row)} has {len(row.prompt)} chat messages; "
            "write the stepwise layout, or set lossy to join them"
        )
    return "\n".join(str(message["content"]) for message in row.prompt)


def place(row: StepRow) -> str:
    """How an error names a row of ours."""
    return f"the row of problem {row.problem_id!r}, sample {row.sample},"
