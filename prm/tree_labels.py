"""Step labels from a tree of roll-outs whose first bad steps are sought in turn (OmegaPRM, arXiv 2406.06592).

A state is a prefix from which K roll-outs were drawn, MC(s) the share that succeeded. Wrong roll-outs of states with
0 < MC(s) < 1 stand in a pool; the pair that maximises

    alpha^(1 - MC(s)) beta^(length(r) / L)  +  c sqrt(sum of all N) / (1 + N(s))        N(s): how often s was chosen

is taken out of it, and the roll-out's first bad step is located by binary search (`prm/locate.py`). The steps
probed on the way are new states with new roll-outs, which feed the pool. A pair is chosen once, a state is probed once
and its roll-outs are paid once (a re-implementation in use selects the same pair forever and bills it again).

Differences from the paper: the tree starts from a given response, not from K answers to the question (a correct one
gives its first step as first state); lengths are in tokens, not words; the wrong last step is known without roll-outs.

Each searched roll-out becomes a row (source `tree`) that labels the steps behind its branching point only; what lies
before is labelled in its parent's row. `provenance` names parent and branching step, so that rows give the tree back.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from prm.formats import StepRow
from prm.label_config import LabelConfig
from prm.labelling import Found, Plan, label_row, last_tally, rollout_rows
from prm.locate import locate
from prm.rollouts import Ask, Rollout, Rollouts, Trajectory, finish
from prm.stopping import Tally
from verifiers.core import Outcome

ALPHA, BETA, LENGTH, EXPLORE = 0.5, 0.9, 500, 0.125
"""The paper's constants of the selection rule."""


@dataclass(slots=True)
class _State:
    """A prefix with its roll-outs; `wrong` are those not searched yet, with their place in the stream."""

    at: Trajectory
    step: int
    tally: Tally
    wrong: list[tuple[int, Rollout]]
    chosen: int = 0


@dataclass(slots=True)
class _Tree:
    states: list[_State] = field(default_factory=list)

    def select(self) -> tuple[_State, int, Rollout] | None:
        """The best pair, taken out of the pool; None when it is empty."""
        total = sum(state.chosen for state in self.states)
        best: tuple[float, _State, int] | None = None
        for state in self.states:
            if not 0 < state.tally.successes < state.tally.decided:
                continue
            share = state.tally.successes / state.tally.decided
            explore = EXPLORE * math.sqrt(total) / (1 + state.chosen)
            for place, (_, rollout) in enumerate(state.wrong):
                value = ALPHA ** (1 - share) * BETA ** (len(rollout.token_ids) / LENGTH) + explore
                if best is None or value > best[0]:
                    best = value, state, place
        if best is None:
            return None
        _, state, place = best
        state.chosen += 1
        return state, *state.wrong.pop(place)


def tree_plan(rollouts: Rollouts, at: Trajectory, config: LabelConfig, provenance: dict[str, Any]) -> Plan:
    """The rows of one response's tree, its own first."""
    if not at.steps:
        return []
    tree = _Tree()
    rows = []
    outcome = rollouts.judge([(at.problem, at.response)])[0]
    left = config.searches
    if outcome is Outcome.INCORRECT:
        rows.append((yield from _search(rollouts, tree, at, -1, config, provenance, "response")))
        left -= 1
    else:
        tallies = [Tally()] * (len(at.steps) - 1) + [last_tally(rollouts, at, config.trials)]
        if outcome is Outcome.CORRECT and len(at.steps) > 1:
            tallies[0] = yield from _probe(tree, at, 0, config.trials)
        hard = (True if outcome is Outcome.CORRECT else None,) * len(at.steps)
        rows.append(label_row(rollouts, at, tallies, provenance, hard=hard))
    for _ in range(left):
        pair = tree.select()
        if pair is None:
            break
        state, number, rollout = pair
        response = finish(rollouts.engine.tokenizer, state.at, state.step, rollout.token_ids, rollout.stop_reason)
        branch = rollouts.trajectory(state.at.problem, response, name=f"{state.at.name}.{state.step}.{number}")
        if len(branch.steps) <= state.step + 1:
            continue
        branched = provenance | {"parent": state.at.name, "branch_step": state.step, "name": branch.name}
        rows.append((yield from _search(rollouts, tree, branch, state.step, config, branched, "tree")))
    if config.keep_rollouts:
        for state in tree.states:
            for _, rollout in state.wrong:
                rows += rollout_rows(rollouts, state.at, state.step, rollout, provenance)
    return rows


def _search(
    rollouts: Rollouts,
    tree: _Tree,
    at: Trajectory,
    before: int,
    config: LabelConfig,
    provenance: dict[str, Any],
    source: str,
) -> Generator[list[Ask], Found, StepRow]:
    """Locate the first bad step behind step `before` of a wrong response; its row."""
    new = len(at.steps) - before - 1
    tallies = [Tally()] * (len(at.steps) - 1) + [last_tally(rollouts, at, config.trials)]
    search = locate(new, trials=config.trials, by="binary", neighbour=config.neighbour)
    try:
        probe = next(search)
        while True:
            step = before + 1 + probe.step
            tallies[step] = yield from _probe(tree, at, step, probe.trials)
            probe = search.send(tallies[step].successes > 0)
    except StopIteration as end:
        first = before + 1 + int(end.value)
    hard = (None,) * (before + 1) + (True,) * (first - before - 1) + (False,) * (len(at.steps) - first)
    return label_row(rollouts, at, tallies, provenance | {"first_error": first}, hard=hard, source=source)


def _probe(tree: _Tree, at: Trajectory, step: int, trials: int) -> Generator[list[Ask], Found, Tally]:
    """Draw a state's roll-outs and add it to the tree."""
    ((_, found),) = yield [Ask(trajectory=at, step=step, count=trials)]
    tally = Tally()
    for rollout in found:
        tally = tally.plus(rollout.outcome)
    wrong = [(n, rollout) for n, rollout in enumerate(found) if rollout.outcome is Outcome.INCORRECT]
    tree.states.append(_State(at, step, tally, wrong))
    return tally
