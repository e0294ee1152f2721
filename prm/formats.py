"""Step-labelled data in and out: the TRL stepwise layout, with counts.

One row is one response to one prompt:

    {"prompt": str | messages, "completions": [step, ...], "labels": [bool | float | null, ...],
     "successes": [k, ...], "trials": [n, ...], "undecided": [u, ...],
     "hard": [bool | null, ...], "prior": [[a, b], ...],
     "problem_id": str, "sample": int, "stop_reason": str, "source": str, "provenance": {...}, "token_ids": [...]}

The first three are the layout public sets use; a row with nothing else is read as one trial a step (a float
label p as p successes in one trial). Ours keeps how many of how many roll-outs succeeded, never only the ratio.
A step with no trials has the label null and takes no part in the loss, unless something else says what it is:
`hard` holds the labels where another rule than "any trial succeeded" decides them (a test, a threshold, a roll-out
from a later step: its success shows that every step before can succeed), `prior` the pseudo-counts (a successes, b
failures) that another model's opinion is worth (prm/posterior.py); with them the soft label is the posterior mean
(s + a) / (n + a + b). `token_ids`
stands only where the sampled ids differ from encoding the text, so that nothing is lost and files stay small.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from verifiers.core import Problem, Prompt, Response, StopReason
from verifiers.errors import DataError
from verifiers.jsonl import numbered_rows
from verifiers.steps import BLANK_LINE

LabelKind: TypeAlias = Literal["hard", "soft"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """A response with, for every step, how many of how many roll-outs from it succeeded."""

    prompt: Prompt
    completions: tuple[str, ...]
    successes: tuple[float, ...]
    """Successful trials a step; fractional where a public set gives a soft label."""
    trials: tuple[int, ...]
    """Decided trials a step; 0 means unlabelled."""
    hard: tuple[bool | None, ...] = ()
    """Hard labels, where another rule than "any trial succeeded" decides them; None leaves a step unlabelled."""
    prior: tuple[tuple[float, float], ...] = ()
    """Pseudo-counts a step (successes, failures), both above 0, or (0, 0) for none; counted beside trials."""
    undecided: tuple[int, ...] = ()
    """Trials without a verdict a step: neither success nor failure."""
    problem_id: str = ""
    sample: int = 0
    stop_reason: StopReason = StopReason.STOP
    source: str = ""
    """`response` for a labelled response, `rollout` for a roll-out kept as a response of its own."""
    token_ids: tuple[int, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Policy, sampling, seed and method that made the labels."""

    def __post_init__(self) -> None:
        if not self.completions:
            raise DataError(f"a stepwise row needs at least one step; problem {self.problem_id!r} has none")
        for name in ("successes", "trials"):
            if len(getattr(self, name)) != len(self.completions):
                raise DataError(
                    f"{name!r} must have one entry a step; got {len(getattr(self, name))} for "
                    f"{len(self.completions)} steps (problem {self.problem_id!r})"
                )
        if self.undecided and len(self.undecided) != len(self.completions):
            raise DataError(
                f"'undecided' must have one entry a step or none; got {len(self.undecided)} for "
                f"{len(self.completions)} steps (problem {self.problem_id!r})"
            )
        for name in ("hard", "prior"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.completions):
                raise DataError(
                    f"{name!r} must have one entry a step or none; got {len(getattr(self, name))} for "
                    f"{len(self.completions)} steps (problem {self.problem_id!r})"
                )
        if any((a, b) != (0, 0) and not (a > 0 and b > 0 and math.isfinite(a + b)) for a, b in self.prior):
            raise DataError(
                f"'prior' must hold pseudo-counts above 0, or 0 and 0; got {self.prior} (problem {self.problem_id!r})"
            )
        if self.undecided and not any(self.undecided):
            object.__setattr__(self, "undecided", ())  # one spelling, so that rows survive a round trip equal
        if any(not 0 <= s <= n for s, n in zip(self.successes, self.trials, strict=True)):
            raise DataError(
                f"successes must lie between 0 and trials; got {self.successes} of {self.trials} "
                f"(problem {self.problem_id!r})"
            )

    @property
    def response(self) -> Response:
        """The response these labels are about."""
        return Response(
            problem_id=self.problem_id,
            text=BLANK_LINE.join(self.completions),
            token_ids=self.token_ids,
            stop_reason=self.stop_reason,
            sample=self.sample,
        )

    @property
    def problem(self) -> Problem:
        """The problem, without its reference answer."""
        return Problem(id=self.problem_id, prompt=self.prompt)

    @property
    def stopped(self) -> bool:
        """Whether sampling stopped depending on what came: then s / n is biased, the likelihood of (s, n) is not."""
        return bool(self.provenance.get("optional_stopping"))

    def targets(self, kind: LabelKind = "soft") -> list[tuple[float, float]]:
        """What a step's loss is told, as (successes, trials); (0, 0) for an unlabelled step.

        Hard: one trial that succeeded if any did, or what `hard` says. Soft: the counts plus the prior's.
        """
        count = len(self.completions)
        if kind == "hard":
            any_won = [s > 0 if n else None for s, n in zip(self.successes, self.trials, strict=True)]
            labels = self.hard or any_won
            return [(0.0, 0.0) if label is None else (float(label), 1.0) for label in labels]
        prior = self.prior or ((0.0, 0.0),) * count
        return [(s + a, n + a + b) for s, n, (a, b) in zip(self.successes, self.trials, prior, strict=True)]

    def labels(self, kind: LabelKind = "soft") -> list[bool | float | None]:
        """Hard: did any trial succeed. Soft: the posterior mean or, without a prior, the share that did.

        None for an unlabelled step. A step that has nothing but a hard label shows it in both kinds.
        """
        known = self.hard or (None,) * len(self.completions)
        found: list[bool | float | None] = []
        for (s, n), label in zip(self.targets(kind), known, strict=True):
            found.append((bool(s) if kind == "hard" else s / n) if n else label)
        return found

    def to_json(self, kind: LabelKind = "soft") -> dict[str, Any]:
        """A row of our layout, readable as TRL's."""
        row: dict[str, Any] = {
            "prompt": self.prompt if isinstance(self.prompt, str) else [dict(m) for m in self.prompt],
            "completions": list(self.completions),
            "labels": self.labels(kind),
            "successes": [int(s) if s == int(s) else s for s in self.successes],
            "trials": list(self.trials),
        }
        if self.hard:
            row["hard"] = list(self.hard)
        if self.prior:
            row["prior"] = [list(pair) for pair in self.prior]
        if any(self.undecided):
            row["undecided"] = list(self.undecided)
        if self.token_ids:
            row["token_ids"] = list(self.token_ids)
        row |= {"problem_id": self.problem_id, "sample": self.sample, "stop_reason": self.stop_reason.value}
        if self.source:
            row["source"] = self.source
        if self.provenance:
            row["provenance"] = dict(self.provenance)
        return row


def read_stepwise(path: str | os.PathLike[str]) -> list[StepRow]:
    """Rows of a JSON Lines file (optionally .gz) in the TRL layout or ours.

    Raises MissingFileError and DataError; the latter names file, line and field.
    """
    rows = numbered_rows(Path(path), required=("prompt", "completions", "labels"))
    return [from_json(row, where=f"{path}, line {number}") for number, row in rows]


def write_rows(rows: Iterable[StepRow], kind: LabelKind = "soft") -> Iterable[dict[str, Any]]:
    """JSON rows for `verifiers.jsonl.write_jsonl`."""
    return (row.to_json(kind) for row in rows)


def from_json(row: Mapping[str, Any], *, where: str = "row") -> StepRow:
    """One row of the TRL layout or ours; `where` names it in errors."""
    completions, labels = row["completions"], row["labels"]
    if not isinstance(completions, list) or not all(isinstance(step, str) for step in completions):
        raise DataError(f"{where}, field 'completions': must be a list of step texts; got {completions!r:.80}")
    if not isinstance(labels, list) or len(labels) != len(completions):
        got = f"{len(labels)} labels" if isinstance(labels, list) else repr(labels)[:80]
        raise DataError(f"{where}, field 'labels': must be a list of {len(completions)}, one a step; got {got}")
    for number, label in enumerate(labels):
        if label is not None and not _is_label(label):
            raise DataError(
                f"{where}, field 'labels'[{number}]: must be true, false, a share in [0, 1] or null; got {label!r}"
            )
    trials = _counts(row, "trials", where)
    successes = _numbers(row, "successes", where)
    if (trials is None) != (successes is None):
        there, missing = ("successes", "trials") if trials is None else ("trials", "successes")
        raise DataError(f"{where}, field {missing!r}: is missing beside {there!r}; give both or neither")
    if trials is None or successes is None:
        trials = [0 if label is None else 1 for label in labels]
        successes = [0.0 if label is None else float(label) for label in labels]
    provenance = row.get("provenance", {})
    if not isinstance(provenance, Mapping):
        raise DataError(f"{where}, field 'provenance': must be an object; got {provenance!r:.80}")
    try:
        return StepRow(
            prompt=_prompt(row["prompt"], where),
            completions=tuple(completions),
            successes=tuple(successes),
            trials=tuple(trials),
            hard=_hard(row, where),
            prior=_prior(row, where),
            undecided=tuple(_counts(row, "undecided", where) or ()),
            problem_id=str(row.get("problem_id", row.get("id", ""))),
            sample=_sample(row, where),
            stop_reason=_stop_reason(row, where),
            source=str(row.get("source", "")),
            token_ids=tuple(_counts(row, "token_ids", where) or ()),
            provenance=dict(provenance),
        )
    except DataError as error:
        if str(error).startswith(where):
            raise
        raise DataError(f"{where}: {error}") from error


def _is_label(label: object) -> bool:
    if isinstance(label, bool):
        return True
    return isinstance(label, int | float) and math.isfinite(label) and 0 <= label <= 1


def _numbers(row: Mapping[str, Any], name: str, where: str) -> list[float] | None:
    values = row.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf for value in values
    ):
        raise DataError(f"{where}, field {name!r}: must be a list of counts; got {values!r:.80}")
    return values


def _counts(row: Mapping[str, Any], name: str, where: str) -> list[int] | None:
    values = _numbers(row, name, where)
    if values is None:
        return None
    if any(value != int(value) for value in values):
        raise DataError(f"{where}, field {name!r}: must be a list of whole numbers; got {values!r:.80}")
    return [int(value) for value in values]


def _hard(row: Mapping[str, Any], where: str) -> tuple[bool | None, ...]:
    values = row.get("hard", [])
    if not isinstance(values, list) or not all(value is None or isinstance(value, bool) for value in values):
        raise DataError(f"{where}, field 'hard': must be a list of true, false or null; got {values!r:.80}")
    return tuple(values)


def _prior(row: Mapping[str, Any], where: str) -> tuple[tuple[float, float], ...]:
    values = row.get("prior", [])
    numbers = [v for pair in values for v in pair] if _pairs(values) else [None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise DataError(f"{where}, field 'prior': must be a list of pairs of pseudo-counts; got {values!r:.80}")
    return tuple((float(a), float(b)) for a, b in values)


def _pairs(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in values)


def _sample(row: Mapping[str, Any], where: str) -> int:
    value = row.get("sample", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"{where}, field 'sample': must be a whole number, 0 or more; got {value!r:.80}")
    return value


def _stop_reason(row: Mapping[str, Any], where: str) -> StopReason:
    value = row.get("stop_reason", StopReason.STOP.value)
    try:
        return StopReason(value)
    except ValueError as error:
        known = ", ".join(reason.value for reason in StopReason)
        raise DataError(f"{where}, field 'stop_reason': must be one of {known}; got {value!r:.80}") from error


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in value):
        return tuple(dict(message) for message in value)
    raise DataError(f"{where}, field 'prompt': must be text or a list of chat messages; got {value!r:.80}")
