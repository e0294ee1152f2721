"""Step-labelled rows in and out: what survives a round trip, and what every error says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.formats import StepRow, from_json, read_stepwise, write_rows
from verifiers.core import StopReason
from verifiers.errors import DataError, MissingFileError
from verifiers.jsonl import write_jsonl

TRL = {"prompt": "What is 1 + 2?", "completions": ["1 + 2 = 3.", "So 4."], "labels": [True, False]}


def put(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_a_trl_row_is_one_trial_a_step(tmp_path: Path) -> None:
    (row,) = read_stepwise(put(tmp_path / "trl.jsonl", TRL))
    assert row.prompt == "What is 1 + 2?"
    assert row.completions == ("1 + 2 = 3.", "So 4.")
    assert (row.successes, row.trials) == ((1.0, 0.0), (1, 1))
    assert row.response.text == "1 + 2 = 3.\n\nSo 4."
    assert row.response.stop_reason is StopReason.STOP
    assert row.labels("hard") == [True, False]
    assert row.labels("soft") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "successes", "trials"),
    [
        ([True, False], (1.0, 0.0), (1, 1)),
        ([1, 0], (1.0, 0.0), (1, 1)),
        ([0.7, 0.25], (0.7, 0.25), (1, 1)),
        ([None, 0.5], (0.0, 0.5), (0, 1)),
        ([None, None], (0.0, 0.0), (0, 0)),
    ],
)
def test_bool_share_and_null_labels(labels: list[Any], successes: tuple[float, ...], trials: tuple[int, ...]) -> None:
    row = from_json({**TRL, "labels": labels})
    assert (row.successes, row.trials) == (successes, trials)
    assert row.labels("soft") == [None if label is None else float(label) for label in labels]
    assert row.labels("hard") == [None if label is None else label > 0 for label in labels]


def test_counts_win_over_the_ratio_beside_them() -> None:
    row = from_json({**TRL, "labels": [0.5, 0.0], "successes": [4, 0], "trials": [8, 7], "undecided": [0, 1]})
    assert (row.successes, row.trials, row.undecided) == ((4, 0), (8, 7), (0, 1))
    assert row.labels() == [0.5, 0.0]


@st.composite
def rows(draw: st.DrawFn) -> StepRow:
    steps = draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4))
    trials = [draw(st.integers(0, 9)) for _ in steps]
    successes = [draw(st.integers(0, n)) if draw(st.booleans()) else n / 2 for n in trials]
    messages = ({"role": "user", "content": draw(st.text(max_size=5))},)
    return StepRow(
        prompt=draw(st.text(max_size=5)) if draw(st.booleans()) else messages,
        completions=tuple(steps),
        successes=tuple(map(float, successes)),
        trials=tuple(trials),
        undecided=draw(st.sampled_from([(), tuple(range(len(steps))), (0,) * len(steps)])),
        problem_id=draw(st.text(max_size=4)),
        sample=draw(st.integers(0, 99)),
        stop_reason=draw(st.sampled_from(StopReason)),
        source=draw(st.sampled_from(["", "response", "rollout"])),
        token_ids=draw(st.sampled_from([(), (1, 2, 70_000)])),
        provenance=draw(st.sampled_from([{}, {"policy": "p", "seed": 3}])),
    )


@settings(max_examples=100, deadline=None)
@given(rows(), st.sampled_from(["hard", "soft"]))
def test_a_row_comes_back_as_it_went(row: StepRow, kind: Any) -> None:
    assert from_json(json.loads(json.dumps(row.to_json(kind)))) == row


def test_a_file_comes_back_as_it_went_packed_or_not(tmp_path: Path) -> None:
    wanted = [
        StepRow(prompt="p", completions=("a", "b"), successes=(3.0, 0.0), trials=(4, 4), problem_id="x", sample=1),
        StepRow(prompt=({"role": "user", "content": "q"},), completions=("c",), successes=(0.0,), trials=(0,)),
    ]
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        assert write_jsonl(tmp_path / name, write_rows(wanted)) == 2
        assert read_stepwise(tmp_path / name) == wanted


def test_what_is_written_is_readable_as_trl_rows() -> None:
    row = StepRow(prompt="p", completions=("a", "b"), successes=(3.0, 0.0), trials=(4, 0), problem_id="x")
    assert row.to_json() == {
        "prompt": "p", "completions": ["a", "b"], "labels": [0.75, None], "successes": [3, 0], "trials": [4, 0],
        "problem_id": "x", "sample": 0, "stop_reason": "stop",
    }  # fmt: skip
    assert row.to_json("hard")["labels"] == [True, None]


OURS = {**TRL, "successes": [1, 0], "trials": [1, 1]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "completions": ["a"]}, "the field 'labels' is missing"),
        ({**TRL, "completions": "a b"}, "field 'completions': must be a list of step texts; got 'a b'"),
        ({**TRL, "completions": ["a", 1]}, "field 'completions': must be a list of step texts"),
        ({**TRL, "labels": [True]}, "field 'labels': must be a list of 2, one a step; got 1 labels"),
        ({**TRL, "labels": True}, "field 'labels': must be a list of 2, one a step; got True"),
        ({**TRL, "labels": [True, 2]}, r"field 'labels'\[1\]: must be true, false, a share in \[0, 1\] or null; got 2"),
        ({**TRL, "labels": [True, -100]}, r"field 'labels'\[1\]"),
        ({**TRL, "labels": ["+", True]}, r"field 'labels'\[0\]"),
        ('{"prompt": "p", "completions": ["a"], "labels": [1e999]}', r"field 'labels'\[0\]"),
        ({**TRL, "prompt": 3}, "field 'prompt': must be text or a list of chat messages; got 3"),
        ({**TRL, "prompt": [{"role": "user"}]}, "field 'prompt'"),
        ({**TRL, "trials": [8, 8]}, "field 'successes': is missing beside 'trials'"),
        ({**TRL, "successes": [8, 8]}, "field 'trials': is missing beside 'successes'"),
        ({**OURS, "trials": [1, 1.5]}, "field 'trials': must be a list of whole numbers"),
        ({**OURS, "trials": [1, -1]}, "field 'trials': must be a list of counts"),
        ({**OURS, "trials": [True, 1]}, "field 'trials': must be a list of counts"),
        ('{"prompt":"p","completions":["a"],"labels":[1],"successes":[0],"trials":[1e999]}', "field 'trials'"),
        ({**OURS, "trials": [1]}, "'trials' must have one entry a step; got 1 for 2"),
        ({**OURS, "trials": []}, "'trials' must have one entry a step; got 0 for 2"),
        ({**OURS, "successes": [2, 0]}, "successes must lie between 0 and trials"),
        ({**OURS, "undecided": [1]}, "'undecided' must have one entry a step or none; got 1 for 2"),
        ({**TRL, "sample": None}, "field 'sample': must be a whole number"),
        ({**TRL, "sample": "first"}, "field 'sample': must be a whole number"),
        ({**TRL, "stop_reason": "eos"}, "field 'stop_reason': must be one of stop, length, repetition, rejected"),
        ({**TRL, "token_ids": 5}, "field 'token_ids'"),
        ({**TRL, "token_ids": [1.5]}, "field 'token_ids'"),
        ({**TRL, "provenance": 5}, "field 'provenance': must be an object; got 5"),
        ({**TRL, "completions": [], "labels": []}, "at least one step"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_and_field(tmp_path: Path, row: Any, said: str) -> None:
    path = put(tmp_path / "bad.jsonl", TRL, "", row)  # a blank line counts as a line
    with pytest.raises(DataError, match=said) as caught:
        read_stepwise(path)
    message = str(caught.value)
    assert str(path) in message
    assert "line 3" in message or f"{path}:3" in message
    assert message.count(str(path)) == 1
    assert "\n" not in message


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        read_stepwise(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no rows"):
        read_stepwise(put(tmp_path / "empty.jsonl", ""))


def test_posterior_and_decided_labels() -> None:
    row = StepRow(
        prompt="q",
        completions=("a", "b", "c", "d"),
        successes=(3.0, 0.0, 0.0, 0.0),
        trials=(4, 4, 0, 0),
        prior=((1.0, 1.0), (0.5, 3.5), (2.0, 6.0), (1.0, 1.0)),
        hard=(True, False, True, None),
    )
    assert row.targets("soft") == [(4.0, 6.0), (0.5, 8.0), (2.0, 8.0), (1.0, 2.0)]
    assert row.labels("soft") == [4 / 6, 0.0625, 0.25, 0.5]
    assert row.targets("hard") == [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    assert row.labels("hard") == [True, False, True, None]
    assert from_json(json.loads(json.dumps(row.to_json()))) == row
    bare = replace(row, prior=())
    assert bare.labels("soft") == [0.75, 0.0, True, None]
    assert from_json(json.loads(json.dumps(bare.to_json()))) == bare


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hard", [1, None], "field 'hard': must be a list of true, false or null"),
        ("prior", [[1.0], [1.0]], "field 'prior': must be a list of pairs"),
        ("prior", [[0.0, 1.0], [1.0, 1.0]], "'prior' must hold pseudo-counts above 0, or 0 and 0"),
        ("hard", [True], "'hard' must have one entry a step or none; got 1 for 2"),
    ],
)
def test_refuses_broken_extra_labels(field: str, value: object, words: str) -> None:
    row = {"prompt": "q", "completions": ["a", "b"], "labels": [True, None], field: value}
    with pytest.raises(DataError, match=words.replace("[", r"\[")):
        from_json(row, where="x.jsonl, line 3")
