"""Monte-Carlo step labels: how often does the policy reach a right answer from here?

For the prefix of a response that ends after step t, K roll-outs are drawn from the policy and judged; the label
of step t is the count of successes among the decided trials, an unbiased estimate of

    V(x, y<=t) = P(right answer | prompt x, steps y_1..y_t)          (Math-Shepherd, Wang et al. 2023, 2312.08935)

A verdict that is undecided is neither success nor failure. From a finished response every roll-out is the
response itself, so its last step is judged once and counted K times. Roll-outs may be kept as rows of their
own: the steps a roll-out added carry its outcome as one trial each, also unbiased, and cost nothing more; the
steps before them are left unlabelled, because the outcome depends on them through the draw that was cut.

Everything derives from (seed, problem id, sample, step), so a job that is killed and started again draws the
same roll-outs, and labels do not depend on the order or the batch in which responses are labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from prm.formats import StepRow
from verifiers.core import (
    Engine,
    GenerationRequest,
    Outcome,
    Problem,
    Response,
    Sampling,
    Scorer,
    Step,
    StopReason,
    Verdict,
    derive_seed,
)
from verifiers.errors import ConfigError
from verifiers.steps import encode_prompt, response_ids, token_steps


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How step labels are made."""

    method: Literal["fixed"] = "fixed"
    """fixed: the same number of roll-outs from every step."""
    trials: int = 8
    """Roll-outs a step (K)."""
    temperature: float = 1.0
    """Sampling temperature of the roll-outs."""
    max_new_tokens: int = 512
    """Longest roll-out."""
    keep_rollouts: bool = False
    """Also return each roll-out as a row whose new steps have one trial."""
    seed: int = 0
    """Seed of all roll-outs."""

    def __post_init__(self) -> None:
        if self.method != "fixed":
            raise ConfigError(f"labelling method must be 'fixed'; got {self.method!r}")
        if self.trials < 1:
            raise ConfigError(f"trials must be 1 or more roll-outs a step; got {self.trials!r}")

    @property
    def sampling(self) -> Sampling:
        """The roll-outs' sampling settings."""
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One response being labelled: its ids, its steps, and where its requests stand in the batch."""

    problem: Problem
    response: Response
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    steps: tuple[Step, ...]
    first_request: int


def label(
    problems: Sequence[Problem],
    responses: Sequence[Response],
    *,
    engine: Engine,
    verifier: Scorer,
    config: LabelConfig | None = None,
    policy: str = "",
    chunk: int = 64,
) -> Iterator[list[StepRow]]:
    """Label responses; yields the rows of one response after another, `responses[i]` answering `problems[i]`.

    The first row of each list is the response's own (source `response`), roll-outs follow when they are kept.
    A response without steps yields an empty list. `chunk` responses share the engine's batch; it changes
    nothing but speed and how often rows come out. `policy` is recorded in the rows.
    """
    config = config or LabelConfig()
    if len(problems) != len(responses):
        raise ConfigError(f"there must be one problem a response; got {len(problems)} and {len(responses)}")
    provenance = {"policy": policy, **asdict(config)}
    for start in range(0, len(responses), chunk):
        part = slice(start, start + chunk)
        yield from _label_chunk(problems[part], responses[part], engine, verifier, config, provenance)


def _label_chunk(
    problems: Sequence[Problem],
    responses: Sequence[Response],
    engine: Engine,
    verifier: Scorer,
    config: LabelConfig,
    provenance: dict[str, Any],
) -> Iterator[list[StepRow]]:
    work: list[_Work] = []
    requests: list[GenerationRequest] = []
    for problem, response in zip(problems, responses, strict=True):
        ids = response_ids(engine.tokenizer, response)
        steps = tuple(token_steps(engine.tokenizer, response, ids))
        prompt_ids = encode_prompt(engine.tokenizer, problem.prompt)
        work.append(
            _Work(
                problem=problem,
                response=response,
                prompt_ids=prompt_ids,
                ids=ids,
                steps=steps,
                first_request=len(requests),
            )
        )
        for number, step in enumerate(steps[:-1]):
            seed = derive_seed(config.seed, "label", problem.id, response.sample, number)
            prefix = (*prompt_ids, *ids[: step.token_end])
            requests.append(GenerationRequest(prefix_ids=prefix, n=config.trials, seed=seed))
    drawn = engine.generate(requests, config.sampling) if requests else []
    rollouts = [
        [
            [_finish(engine, item, number, c.token_ids, c.stop_reason) for c in drawn[item.first_request + number]]
            for number in range(len(item.steps) - 1)
        ]
        for item in work
    ]
    verdicts = _judge_all(work, rollouts, verifier)
    for item, trials in zip(work, rollouts, strict=True):
        yield _rows(item, trials, verdicts, engine, config, provenance)


def _finish(engine: Engine, item: _Work, step: int, new_ids: tuple[int, ...], reason: Any) -> Response:
    """The whole response that a roll-out from after `step` amounts to."""
    ids = (*item.ids[: item.steps[step].token_end], *new_ids)
    text = engine.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Response(
        problem_id=item.problem.id, text=text, token_ids=ids, stop_reason=reason, sample=item.response.sample
    )


_Asked: TypeAlias = tuple[str, str, StopReason]


def _asked(problem: Problem, response: Response) -> _Asked:
    return problem.id, response.text, response.stop_reason


def _judge_all(work: list[_Work], rollouts: list[list[list[Response]]], verifier: Scorer) -> dict[_Asked, Verdict]:
    """Verdicts by what a verifier may look at; every distinct response is judged once."""
    asked: dict[_Asked, tuple[Problem, Response]] = {}
    for item, steps in zip(work, rollouts, strict=True):
        for response in [item.response, *(r for trials in steps for r in trials)]:
            asked.setdefault(_asked(item.problem, response), (item.problem, response))
    pairs = list(asked.values())
    found = verifier.judge([p for p, _ in pairs], [r for _, r in pairs])
    return dict(zip(asked, found, strict=True))


def _rows(
    item: _Work,
    rollouts: list[list[Response]],
    verdicts: dict[_Asked, Verdict],
    engine: Engine,
    config: LabelConfig,
    provenance: dict[str, Any],
) -> list[StepRow]:
    if not item.steps:
        return []
    successes, undecided = [], []
    finished = [item.response] * config.trials
    for trials in [*rollouts, finished]:
        outcomes = [verdicts[_asked(item.problem, response)].outcome for response in trials]
        successes.append(outcomes.count(Outcome.CORRECT))
        undecided.append(outcomes.count(Outcome.UNDECIDED))
    rows = [
        _row(
            item.problem,
            item.response,
            item.ids,
            item.steps,
            engine,
            successes=successes,
            trials=[config.trials - u for u in undecided],
            undecided=tuple(undecided),
            source="response",
            provenance=provenance,
        )
    ]
    if config.keep_rollouts:
        for number, trials in enumerate(rollouts):
            for response in trials:
                row = _rollout_row(item, number, response, verdicts, engine, provenance)
                rows += [] if row is None else [row]
    return rows


def _rollout_row(
    item: _Work,
    step: int,
    response: Response,
    verdicts: dict[_Asked, Verdict],
    engine: Engine,
    provenance: dict[str, Any],
) -> StepRow | None:
    """A roll-out as a row: one trial for every step it added; None when it says nothing new."""
    outcome = verdicts[_asked(item.problem, response)].outcome
    steps = tuple(token_steps(engine.tokenizer, response, response.token_ids))
    added = len(steps) - (step + 1)
    if added < 1 or outcome is Outcome.UNDECIDED:
        return None
    won = outcome is Outcome.CORRECT
    return _row(
        item.problem,
        response,
        response.token_ids,
        steps,
        engine,
        successes=[0] * (step + 1) + [int(won)] * added,
        trials=[0] * (step + 1) + [1] * added,
        source="rollout",
        provenance=provenance,
    )


def _row(
    problem: Problem,
    response: Response,
    ids: tuple[int, ...],
    steps: tuple[Step, ...],
    engine: Engine,
    *,
    successes: list[int],
    trials: list[int],
    source: str,
    provenance: dict[str, Any],
    undecided: tuple[int, ...] = (),
) -> StepRow:
    row = StepRow(
        prompt=problem.prompt,
        completions=tuple(step.text for step in steps),
        successes=tuple(float(s) for s in successes),
        trials=tuple(trials),
        undecided=undecided,
        problem_id=problem.id,
        sample=response.sample,
        stop_reason=response.stop_reason,
        source=source,
        provenance=provenance,
    )
    # The sampled ids are stored only where encoding the text would give others.
    if response_ids(engine.tokenizer, row.response) == ids:
        return row
    return StepRow(**{name: getattr(row, name) for name in row.__slots__} | {"token_ids": ids})
