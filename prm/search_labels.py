"""Step labels for free: what was drawn and judged in a search says how often its prefixes led to a right answer.

Responses to one problem that begin with the same steps are roll-outs of one another: of n responses through a prefix, s
right ones make the count (s, n) of the prefix's last step, as Monte-Carlo labelling would have made it (and as a tree
search does, Feng et al. 2024, arXiv 2309.17179). Steps are compared by their texts.

This is an unbiased estimate of V for the sampler that drew the responses, if they were drawn independently: Best-of-N
and voting are. A guided search drops what its scorer dislikes, and counts from it lean towards what it kept; such rows
can be marked by `selected`, which is recorded in the provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prm.formats import StepRow
from verifiers.core import Outcome, Problem, Response, Verdict
from verifiers.errors import ConfigError
from verifiers.steps import split_steps

_Counts = dict[tuple[str, ...], list[int]]


def labels_from_responses(
    problem: Problem,
    responses: Sequence[Response],
    verdicts: Sequence[Verdict],
    *,
    selected: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> list[StepRow]:
    """One row a distinct response, its steps with counts over all responses that pass through them.

    A prefix is counted in the first row that has it and unlabelled in later ones, so that training sees every count
    once. Undecided responses count as neither.
    """
    if len(responses) != len(verdicts):
        raise ConfigError(f"there must be one verdict a response; got {len(verdicts)} for {len(responses)}")
    paths = [tuple(step.text for step in split_steps(response.text)) for response in responses]
    counts: _Counts = {}
    for path, verdict in zip(paths, verdicts, strict=True):
        for length in range(1, len(path) + 1):
            won, lost, open_ = counts.setdefault(path[:length], [0, 0, 0])
            counts[path[:length]] = [
                won + (verdict.outcome is Outcome.CORRECT),
                lost + (verdict.outcome is Outcome.INCORRECT),
                open_ + (verdict.outcome is Outcome.UNDECIDED),
            ]
    rows = []
    given: set[tuple[str, ...]] = set()
    for path, response in zip(paths, responses, strict=True):
        if not path or path in given:
            continue
        tallies = []
        for length in range(1, len(path) + 1):
            tallies.append([0, 0, 0] if path[:length] in given else counts[path[:length]])
            given.add(path[:length])
        rows.append(
            StepRow(
                prompt=problem.prompt,
                completions=path,
                successes=tuple(float(won) for won, _, _ in tallies),
                trials=tuple(won + lost for won, lost, _ in tallies),
                undecided=tuple(open_ for _, _, open_ in tallies),
                problem_id=problem.id,
                sample=response.sample,
                stop_reason=response.stop_reason,
                source="search",
                provenance={"method": "search", "selected": selected, **(provenance or {})},
            )
        )
    return rows
