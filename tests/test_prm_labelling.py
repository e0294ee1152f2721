"""Monte-Carlo labels against a policy whose success rates are written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from prm.backbone import encode_steps
from prm.formats import StepRow, from_json
from prm.labelling import LabelConfig, label
from search.engines.scripted_engine import ByteTokenizer, ScriptedEngine
from verifiers.core import (
    GenerationRequest,
    Problem,
    Response,
    Sampling,
    StopReason,
    Verdict,
    derive_seed,
)
from verifiers.errors import ConfigError
from verifiers.steps import encode_prompt

TEXTS = (
    "Start.\n\nLeft.\n\n\\boxed{right}",
    "Start.\n\nLeft.\n\n\\boxed{right}!",
    "Start.\n\nLeft.\n\n\\boxed{right}?",
    "Start.\n\nLeft.\n\n\\boxed{wrong}",
    "Start.\n\nMiddle.\n\n\\boxed{wrong}",
    "Start.\n\nMiddle.\n\n\\boxed{none}",
    "Start.\n\nMiddle.\n\n\\boxed{wrong}.",
    "Start.\n\nMiddle.\n\n\\boxed{none}.",
)
"""After Start: 3 right, 3 wrong, 2 undecided of 8. After Left: 3 right, 1 wrong. After Middle: 2 wrong, 2 undecided."""


class Judge:
    """Reads right, wrong or nothing from the box; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        self.asked += [response.text for response in responses]
        return [
            Verdict.correct("right")
            if "{right}" in r.text
            else Verdict.incorrect("wrong")
            if "{wrong}" in r.text
            else Verdict.undecided("none", kind="none")
            for r in responses
        ]


def setup(count: int = 1) -> tuple[list[Problem], list[Response], ScriptedEngine]:
    problems = [Problem(id=f"p{n}", prompt=f"Question {n}\n") for n in range(count)]
    engine = ScriptedEngine({str(p.prompt): TEXTS for p in problems})
    responses = [Response(problem_id=p.id, text=TEXTS[3 * n % 8], sample=n) for n, p in enumerate(problems)]
    return problems, responses, engine


def run(
    problems: Sequence[Problem],
    responses: Sequence[Response],
    engine: ScriptedEngine,
    *,
    chunk: int = 64,
    **settings: Any,
) -> list[list[StepRow]]:
    config = LabelConfig(**settings)
    return list(
        label(problems, responses, engine=engine, verifier=Judge(), config=config, policy="script", chunk=chunk)
    )


def test_values_are_recovered_within_binomial_bounds() -> None:
    problems, _, engine = setup()
    ((row,),) = run(problems, [Response(problem_id="p0", text=TEXTS[0])], engine, trials=1200)
    assert row.completions == ("Start.", "Left.", "\\boxed{right}")
    decided = row.trials[0]
    assert abs(decided - 1200 * 6 / 8) < 4 * math.sqrt(1200 * 6 / 8 * 2 / 8)
    assert row.undecided == (1200 - decided, 0, 0)
    assert abs(row.successes[0] / decided - 1 / 2) < 4 * math.sqrt(1 / 4 / decided)
    assert row.trials[1] == 1200
    assert abs(row.successes[1] / 1200 - 3 / 4) < 4 * math.sqrt(3 / 16 / 1200)
    assert (row.successes[2], row.trials[2]) == (1200, 1200)  # finished: every roll-out is the response itself


def test_counts_are_exactly_those_of_the_seeds_roll_outs() -> None:
    problems, _, engine = setup()
    response = Response(problem_id="p0", text=TEXTS[0], sample=7)
    ((row,),) = run(problems, [response], engine, trials=16, seed=11)
    prompt = encode_prompt(engine.tokenizer, problems[0].prompt)
    for number, prefix in enumerate(("Start.\n\n", "Start.\n\nLeft.\n\n")):
        request = GenerationRequest(
            prefix_ids=(*prompt, *prefix.encode()), n=16, seed=derive_seed(11, "label", "p0", 7, number)
        )
        (drawn,) = ScriptedEngine({str(problems[0].prompt): TEXTS}).generate([request], Sampling())
        texts = [prefix + engine.tokenizer.decode(c.token_ids) for c in drawn]
        assert row.successes[number] == sum("{right}" in text for text in texts)
        assert row.trials[number] == sum("{none}" not in text for text in texts)


def test_undecided_is_neither_success_nor_failure() -> None:
    problems, _, engine = setup()
    ((row,),) = run(problems, [Response(problem_id="p0", text=TEXTS[5])], engine, trials=64)
    assert row.successes[1:] == (0, 0)
    assert 0 < row.trials[1] < 64
    assert row.trials[1] + row.undecided[1] == 64
    assert (row.trials[2], row.undecided[2]) == (0, 64)  # nothing is known about the last step
    assert row.labels("soft")[1:] == [0.0, None]


def test_kept_roll_outs_label_only_what_they_added() -> None:
    problems, responses, engine = setup(2)
    plain = run(problems, responses, engine, trials=5)
    kept = run(problems, responses, engine, trials=5, keep_rollouts=True)
    for (own,), (first, *others) in zip(plain, kept, strict=True):
        assert (first.successes, first.trials, first.source) == (own.successes, own.trials, "response")
        assert first.provenance == {**own.provenance, "keep_rollouts": True}
        won = lost = 0
        for row in others:
            assert row.source == "rollout"
            labelled = [n > 0 for n in row.trials]
            assert labelled == sorted(labelled)  # unlabelled prefix, then labelled
            start = labelled.index(True)
            assert start >= 1
            assert row.completions[:start] == first.completions[:start]
            assert set(row.trials[start:]) == {1}
            outcome = "{right}" in row.completions[-1]
            assert set(row.successes[start:]) == {float(outcome)}
            won, lost = won + outcome, lost + (not outcome)
        # Each decided roll-out from a step stands once; the last step's are the response itself.
        assert won == sum(first.successes[:-1])
        assert lost == sum(first.trials[:-1]) - sum(first.successes[:-1])


def test_every_distinct_text_is_judged_once() -> None:
    problems, responses, engine = setup()
    judge = Judge()
    list(label(problems, responses, engine=engine, verifier=judge, config=LabelConfig(trials=50)))
    assert len(judge.asked) == len(set(judge.asked)) <= len(TEXTS)


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_labels_do_not_depend_on_batch_or_order(chunk: int) -> None:
    problems, responses, engine = setup(5)
    wanted = run(problems, responses, engine, trials=3, keep_rollouts=True)
    assert [rows[0].problem_id for rows in wanted] == [p.id for p in problems]
    assert run(problems, responses, engine, trials=3, keep_rollouts=True, chunk=chunk) == wanted
    backwards = run(problems[::-1], responses[::-1], engine, trials=3, keep_rollouts=True, chunk=chunk)
    assert backwards[::-1] == wanted


def test_the_seed_and_the_sample_number_choose_the_roll_outs() -> None:
    problems, responses, engine = setup(4)
    rows = [run(problems, responses, engine, trials=9, seed=seed) for seed in (0, 0, 1)]
    counts = [[own.successes for (own,) in found] for found in rows]
    assert counts[0] == counts[1] != counts[2]
    twins = [Response(problem_id="p0", text=TEXTS[0], sample=n) for n in range(6)]
    found = run([problems[0]] * 6, twins, engine, trials=9)
    assert len({row.successes for (row,) in found}) > 1


@pytest.mark.parametrize("sampled", [False, True])
def test_one_tokenisation_from_draw_to_label_to_model(sampled: bool) -> None:
    problems, _, engine = setup()
    tokenizer = ByteTokenizer()
    text = "Start.\n \nLeft.\n\n\\boxed{right}" if sampled else TEXTS[0]
    ids = (*text.encode(), 256)
    engine = ScriptedEngine({str(problems[0].prompt): [text, *TEXTS[4:]]})
    config = LabelConfig(trials=4, keep_rollouts=True)
    response = Response(problem_id="p0", text=text, token_ids=ids)
    (rows,) = label(problems, [response], engine=engine, verifier=Judge(), config=config)
    assert bool(rows[0].token_ids) is sampled  # stored only where the text would give others
    prompt = encode_prompt(tokenizer, problems[0].prompt)
    for row in rows:
        back = from_json(row.to_json())
        read = encode_steps(tokenizer, back.prompt, back.response)
        drawn = ids[:-1] if row is rows[0] else None
        if drawn is not None:
            assert read.ids == (*prompt, *drawn, *b"\n\n")
        assert [step.text for step in read.steps] == list(row.completions)
        assert len(read.ends) == len(row.trials)
    # The prefix that roll-outs went on from is what the model reads up to the step's end.
    read = encode_steps(tokenizer, problems[0].prompt, rows[0].response)
    for step, end in zip(read.steps[:-1], read.ends, strict=False):
        assert read.ids[: end + 1] == (*prompt, *ids[: step.token_end])


def test_a_cut_roll_out_keeps_its_reason_and_its_ids() -> None:
    problems, _, engine = setup()
    response = Response(problem_id="p0", text=TEXTS[0])
    (rows,) = run(problems, [response], engine, trials=3, keep_rollouts=True, max_new_tokens=4)
    assert rows[0].trials[0] == 0  # "Left" cut short has no box: undecided
    assert rows[0].undecided[:2] == (3, 3)
    assert len(rows) == 1  # nothing to learn from undecided roll-outs
    cut = Response(problem_id="p0", text="Start.\n\nLeft.\n\n\\boxed{wrong} and", stop_reason=StopReason.LENGTH)
    engine = ScriptedEngine({str(problems[0].prompt): [cut.text + " so on"]})
    ((row,),) = run(problems, [cut], engine, trials=2)
    assert row.stop_reason is StopReason.LENGTH
    assert row.response.text == cut.text


def test_a_response_without_steps_has_no_rows() -> None:
    problems, responses, engine = setup(2)
    rows = run(problems, [Response(problem_id="p0", text=" \n\n "), responses[1]], engine, trials=2)
    assert rows[0] == []
    assert len(rows[1]) == 1


def test_a_response_of_one_step_costs_no_roll_out() -> None:
    problems, _, engine = setup()
    ((row,),) = run(problems, [Response(problem_id="p0", text="\\boxed{right}")], engine, trials=6)
    assert (row.successes, row.trials) == ((6,), (6,))
    assert engine.usage.calls == 0


def test_provenance_says_how_the_labels_were_made() -> None:
    problems, responses, engine = setup()
    ((row,),) = run(problems, responses, engine, trials=2, temperature=0.5, seed=4)
    assert row.provenance == {
        "policy": "script", "method": "fixed", "trials": 2, "temperature": 0.5, "max_new_tokens": 512,
        "keep_rollouts": False, "seed": 4, "threshold": 0.0, "optional_stopping": False,
    }  # fmt: skip


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="trials must be 1 or more"):
        LabelConfig(trials=0)
    with pytest.raises(ConfigError, match=r"method must be one of fixed, early_stop, sequential, .*; got 'binary'"):
        LabelConfig(method="binary")  # type: ignore[arg-type]
    problems, responses, engine = setup(2)
    with pytest.raises(ConfigError, match="one problem a response; got 2 and 1"):
        run(problems, responses[:1], engine)
