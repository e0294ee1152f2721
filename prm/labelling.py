"""Monte-Carlo step labels: how often does the policy reach a right answer from here?

For the prefix of a response that ends after step t, roll-outs are drawn from the policy and judged; the label of step
t is the count of successes among the decided ones, an estimate of

    V(x, y<=t) = P(right answer | prompt x, steps y_1..y_t)          (Math-Shepherd, Wang et al. 2023, 2312.08935)

A verdict that is undecided is neither success nor failure. From a finished response every roll-out is the response
itself, so its last step is judged once and counted K times. How many roll-outs the other steps get is the method's
business (`prm/stopping.py`, `prm/locate.py`, `prm/tree_labels.py`). With K fixed, successes / trials is unbiased.
Methods that stop by what they saw make that share biased, but not the counts' likelihood: by Wald's identity
E[s - n V] = 0 at any such stop, so counts may be summed, and trained on with weighting `counts`. Rows say so
(`optional_stopping`).

Roll-outs may be kept as rows of their own: the steps a roll-out added carry its outcome as one trial each and cost
nothing more; the steps before them are left unlabelled, because the outcome depends on them through the draw that was
cut. Everything derives from (seed, problem id, sample, step), so labels do not depend on the order or the batch in
which responses are labelled, and a log of roll-outs (`prm/rollouts.py`) lets a killed job go on without a loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from prm.formats import StepRow
from prm.label_config import LabelConfig
from prm.locate import Probe, locate
from prm.rollouts import Ask, Log, Rollout, Rollouts, Trajectory, finish
from prm.stopping import EarlyStop, Tally
from verifiers.core import Engine, Outcome, Problem, Response, Scorer, StepScorer
from verifiers.errors import ConfigError
from verifiers.steps import response_ids, token_steps

__all__ = ["Found", "LabelConfig", "Plan", "label", "label_pairs", "label_row", "run_plans"]

Found: TypeAlias = list[tuple[Ask, list[Rollout]]]
Plan: TypeAlias = Generator[list[Ask], Found, list[StepRow]]
"""Labels one response: yields what more roll-outs it wants, is sent what came of any of its wishes, returns rows."""


def label(
    problems: Sequence[Problem],
    responses: Sequence[Response],
    *,
    engine: Engine,
    verifier: Scorer,
    config: LabelConfig | None = None,
    policy: str = "",
    scorer: StepScorer | None = None,
    log: Log | None = None,
    chunk: int = 128,
) -> Iterator[list[StepRow]]:
    """Label responses; yields the rows of one response after another, `responses[i]` answering `problems[i]`.

    The first row of each list is the response's own (source `response`), roll-outs follow when they are kept.
    A response without steps yields an empty list. `chunk` responses are in work at a time; it changes
    nothing but speed and when rows come out. `policy` is recorded in the rows. `log` keeps roll-outs and gives
    back those it has. `scorer` guides cheapest_search. Undecided responses keep their counts but get no
    first bad step.
    """
    config = config or LabelConfig()
    if len(problems) != len(responses):
        raise ConfigError(f"there must be one problem a response; got {len(problems)} and {len(responses)}")
    pairs = zip(problems, responses, strict=True)
    return label_pairs(
        pairs, engine=engine, verifier=verifier, config=config, policy=policy, scorer=scorer, log=log, chunk=chunk
    )


def label_pairs(
    pairs: Iterable[tuple[Problem, Response]],
    *,
    engine: Engine,
    verifier: Scorer,
    config: LabelConfig,
    policy: str = "",
    scorer: StepScorer | None = None,
    log: Log | None = None,
    chunk: int = 128,
) -> Iterator[list[StepRow]]:
    """As `label`, over pairs that may still have to be made: no more are taken than are in work."""
    if scorer is not None and config.method != "cheapest_search":
        raise ConfigError(f"a scorer guides cheapest_search; method {config.method!r} makes no use of it")
    rollouts = Rollouts(engine, verifier, config.sampling, seed=config.seed, log=log)
    provenance = {"policy": policy, **config.provenance}

    def plans() -> Iterator[Plan]:
        rest = iter(pairs)
        # A scorer is asked for many responses at a time.
        while part := list(itertools.islice(rest, chunk if scorer else 1)):
            scores = scorer.score_steps([p for p, _ in part], [r for _, r in part]) if scorer else [None]
            for (problem, response), guide in zip(part, scores, strict=True):
                yield _plan(rollouts, rollouts.trajectory(problem, response), config, provenance, guide)

    return run_plans(plans(), rollouts, abreast=chunk)


def _plan(
    rollouts: Rollouts,
    at: Trajectory,
    config: LabelConfig,
    provenance: dict[str, Any],
    guide: Sequence[float] | None,
) -> Plan:
    if config.method == "tree":
        from prm.tree_labels import tree_plan

        return tree_plan(rollouts, at, config, provenance)
    if config.method in ("binary_search", "cheapest_search"):
        return _first_error_plan(rollouts, at, config, provenance, guide)
    return _every_step_plan(rollouts, at, config, provenance)


def run_plans(plans: Iterable[Plan], rollouts: Rollouts, *, abreast: int = 64) -> Iterator[list[StepRow]]:
    """Run plans side by side, at most `abreast` unfinished ones, and yield their rows in the plans' order."""
    waiting = iter(plans)
    running: dict[int, Plan] = {}
    owners: dict[int, tuple[int, Ask]] = {}
    done: dict[int, list[StepRow]] = {}
    started = given = 0

    def go_on(number: int, answer: Found | None) -> None:
        plan = running[number]
        try:
            asks = next(plan) if answer is None else plan.send(answer)
        except StopIteration as end:
            del running[number]
            done[number] = end.value
        else:
            owners.update(zip(rollouts.ask(asks), ((number, ask) for ask in asks), strict=True))

    while True:
        while len(running) < abreast and (plan := next(waiting, None)) is not None:
            running[started] = plan
            go_on(started, None)
            started += 1
        while given in done:
            yield done.pop(given)
            given += 1
        if not running:
            return
        answers: dict[int, Found] = {}
        for ticket, found in rollouts.collect():
            number, ask = owners.pop(ticket)
            answers.setdefault(number, []).append((ask, found))
        for number, answer in answers.items():
            go_on(number, answer)


def _every_step_plan(rollouts: Rollouts, at: Trajectory, config: LabelConfig, provenance: dict[str, Any]) -> Plan:
    """Every step by itself, each until the rule has enough."""
    if not at.steps:
        return []
    rule, last = config.rule, len(at.steps) - 1
    tallies = [Tally()] * last
    kept: list[tuple[int, Rollout]] = []
    steps: Iterable[int] = range(last)
    asked = 0
    while True:
        asks = [Ask(trajectory=at, step=step, count=n) for step in steps if (n := rule.more(tallies[step]))]
        asked += len(asks)
        if not asked:
            break
        answers = yield asks
        asked -= len(answers)
        for ask, found in answers:
            kept += [(ask.step, rollout) for rollout in found]
            for rollout in found:
                tallies[ask.step] = tallies[ask.step].plus(rollout.outcome)
        steps = [ask.step for ask, _ in answers]
    tallies.append(last_tally(rollouts, at, config.trials))
    by_rule = config.method == "sequential" or config.threshold > 0
    hard = tuple(rule.label(tally) for tally in tallies) if by_rule else ()
    rows = [label_row(rollouts, at, tallies, provenance, hard=hard)]
    if config.keep_rollouts:
        # Streams in the order of their steps, whatever order they were drawn in.
        for step, rollout in sorted(kept, key=lambda pair: pair[0]):
            rows += rollout_rows(rollouts, at, step, rollout, provenance)
    return rows


def _first_error_plan(
    rollouts: Rollouts,
    at: Trajectory,
    config: LabelConfig,
    provenance: dict[str, Any],
    guide: Sequence[float] | None,
) -> Plan:
    """Only as many steps as it takes to find the first bad one."""
    if not at.steps:
        return []
    count = len(at.steps)
    tallies = [Tally()] * (count - 1) + [last_tally(rollouts, at, config.trials)]
    outcome = rollouts.judge([(at.problem, at.response)])[0]
    kept: list[tuple[int, Rollout]] = []
    hard: tuple[bool | None, ...] = (None,) * count
    first_error: int | None = None
    if outcome is Outcome.CORRECT:
        # It got to the right answer through every one of its steps.
        hard, first_error = (True,) * count, -1
    elif outcome is Outcome.INCORRECT:
        search = locate(
            count,
            trials=config.trials,
            by="binary" if config.method == "binary_search" else "cheapest",
            neighbour=config.neighbour,
            scores=guide,
        )
        first_error = yield from probes(search, at, config, tallies, kept)
        hard = (True,) * first_error + (False,) * (count - first_error)
    rows = [label_row(rollouts, at, tallies, provenance | {"first_error": first_error}, hard=hard)]
    if config.keep_rollouts:
        for step, rollout in sorted(kept, key=lambda pair: pair[0]):
            rows += rollout_rows(rollouts, at, step, rollout, provenance)
    return rows


def probes(
    search: Generator[Probe, bool, int],
    at: Trajectory,
    config: LabelConfig,
    tallies: list[Tally],
    kept: list[tuple[int, Rollout]],
) -> Generator[list[Ask], Found, int]:
    """Answer a search's probes by roll-outs until the first success; returns what the search returns."""
    try:
        probe = next(search)
        while True:
            rule = EarlyStop(trials=probe.trials, at_once=min(config.at_once, probe.trials), doubling=config.doubling)
            tally = Tally()
            while count := rule.more(tally):
                ((_, found),) = yield [Ask(trajectory=at, step=probe.step, count=count)]
                kept += [(probe.step, rollout) for rollout in found]
                for rollout in found:
                    tally = tally.plus(rollout.outcome)
                    tallies[probe.step] = tallies[probe.step].plus(rollout.outcome)
            probe = search.send(tally.successes > 0)
    except StopIteration as end:
        return int(end.value)


def last_tally(rollouts: Rollouts, at: Trajectory, trials: int) -> Tally:
    """The last step's count: every roll-out from there is the response itself."""
    outcome = rollouts.judge([(at.problem, at.response)])[0]
    return Tally(
        successes=trials * (outcome is Outcome.CORRECT),
        failures=trials * (outcome is Outcome.INCORRECT),
        undecided=trials * (outcome is Outcome.UNDECIDED),
    )


def rollout_rows(
    rollouts: Rollouts, at: Trajectory, step: int, rollout: Rollout, provenance: dict[str, Any]
) -> list[StepRow]:
    """A roll-out as a row: one trial for every step it added; none when it says nothing new."""
    tokenizer = rollouts.engine.tokenizer
    response = finish(tokenizer, at, step, rollout.token_ids, rollout.stop_reason)
    steps = tuple(token_steps(tokenizer, response, response.token_ids))
    added = len(steps) - (step + 1)
    if added < 1 or rollout.outcome is Outcome.UNDECIDED:
        return []
    won = Tally().plus(rollout.outcome)
    whole = Trajectory(
        problem=at.problem,
        response=response,
        prompt_ids=at.prompt_ids,
        ids=response.token_ids,
        steps=steps,
        name=at.name,
    )
    return [label_row(rollouts, whole, [Tally()] * (step + 1) + [won] * added, provenance, source="rollout")]


def label_row(
    rollouts: Rollouts,
    at: Trajectory,
    tallies: Sequence[Tally],
    provenance: dict[str, Any],
    *,
    hard: tuple[bool | None, ...] = (),
    source: str = "response",
) -> StepRow:
    """A response with what its steps' roll-outs came to."""
    row = StepRow(
        prompt=at.problem.prompt,
        completions=tuple(step.text for step in at.steps),
        successes=tuple(float(tally.successes) for tally in tallies),
        trials=tuple(tally.decided for tally in tallies),
        undecided=tuple(tally.undecided for tally in tallies),
        hard=hard,
        problem_id=at.problem.id,
        sample=at.response.sample,
        stop_reason=at.response.stop_reason,
        source=source,
        provenance=provenance,
    )
    # The sampled ids are stored only where encoding the text would give others.
    if response_ids(rollouts.engine.tokenizer, row.response) == at.ids:
        return row
    return StepRow(**{name: getattr(row, name) for name in row.__slots__} | {"token_ids": at.ids})
