"""Other projects' layouts: small rows by hand, round trips on the samples, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prm.formats import StepRow
from prm.public_formats import (
    READERS,
    math_aps,
    math_aps_tree,
    math_shepherd,
    prm800k,
    processbench,
    read_public,
    rlhflow,
    to_math_shepherd,
    to_processbench,
    to_rlhflow,
)
from verifiers.errors import ConfigError, DataError

SHEPHERD = {
    "input": "How many? Step 1: 1 + 1 = 2. ки\nStep 2: 2 + 2 = 5. ки",
    "label": "How many? Step 1: 1 + 1 = 2. +\nStep 2: 2 + 2 = 5. -",
    "task": "GSM8K",
}
TURNS = {
    "conversations": [
        {"role": "user", "content": "How many? Step 1: two"},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": "Step 2: five"},
        {"role": "assistant", "content": "-"},
    ]
}
BENCH = {
    "id": "gsm8k-7",
    "generator": "some-model",
    "problem": "How many?",
    "steps": ["one\n\nmore", "two", "three"],
    "final_answer_correct": False,
    "label": 1,
}


def short(row: StepRow) -> tuple[Any, ...]:
    return row.prompt, row.completions, row.successes, row.trials


def test_math_shepherd_by_hand() -> None:
    (row,) = math_shepherd(SHEPHERD, "here")
    assert short(row) == ("How many?", ("Step 1: 1 + 1 = 2.", "Step 2: 2 + 2 = 5."), (1.0, 0.0), (1, 1))
    assert to_math_shepherd(row) == SHEPHERD


def test_math_shepherd_samples_survive(shared_data: Path) -> None:
    path = shared_data / "formats" / "samples_math-shepherd.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made = read_public(path, "math_shepherd")
    assert [to_math_shepherd(row) for row in made] == rows
    assert all(row.completions[0].startswith("Step 1:") for row in made)


def test_rlhflow_by_hand() -> None:
    (row,) = rlhflow(TURNS, "here")
    assert short(row) == ("How many?", ("Step 1: two", "Step 2: five"), (1.0, 0.0), (1, 1))
    assert to_rlhflow(row) == TURNS


def test_processbench_labels_up_to_the_first_error() -> None:
    (row,) = processbench(BENCH, "here")
    assert short(row) == ("How many?", ("one", "more", "two", "three"), (0.0, 1.0, 0.0, 0.0), (0, 1, 1, 0))
    assert to_processbench(row) == BENCH
    (right,) = processbench({**BENCH, "label": -1, "steps": ["a", "b"]}, "here")
    assert right.labels("hard") == [True, True]
    assert to_processbench(StepRow(prompt="q", completions=("a",), successes=(0,), trials=(4,)))["label"] == 0


def test_math_aps_chains_by_hand() -> None:
    row = {
        "question": "Q",
        "final_answer": "3",
        "question_id": 7,
        "reasoning_steps": [
            {"solution_prefix": "Q", "mc_value": 0.5},
            {"solution_prefix": "Q\n\nfirst", "mc_value": 0.75},
            {"solution_prefix": "Q\n\nfirst\n\nsecond\n\nthird", "mc_value": 1.0},
            {"solution_prefix": "Q\n\nother", "mc_value": 0.0},
        ],
    }
    first, second = math_aps(row, "here", trials=4)
    assert short(first) == ("Q", ("first", "second", "third"), (3.0, 0.0, 4.0), (4, 0, 4))
    assert short(second) == ("Q", ("other",), (0.0,), (4,))
    assert (first.problem_id, first.sample, second.sample) == ("7", 0, 1)


def test_math_aps_tree_by_hand() -> None:
    leaf = {"text": "end", "mc_value": 1.0, "children": []}
    tree = {"text": "Q", "mc_value": 0.5, "children": [{"text": "a", "mc_value": 0.25, "children": [leaf]}, leaf]}
    first, second = math_aps_tree({"question": "Q", "reasoning_steps": tree}, "here")
    assert short(first) == ("Q", ("a", "end"), (4.0, 16.0), (16, 16))
    assert short(second) == ("Q", ("end",), (16.0,), (16,))


@pytest.mark.parametrize(("name", "layout"), [("math-aps", "math_aps"), ("math-aps-tree", "math_aps_tree")])
def test_math_aps_samples(shared_data: Path, name: str, layout: str) -> None:
    path = shared_data / "formats" / f"samples_{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made = read_public(path, layout)
    assert {row.prompt for row in made} == {row["question"] for row in rows}
    for row in made:  # every label is at the end of what it was about, as a count of 16 roll-outs
        assert row.trials[-1] == 16 and all(n in (0, 16) for n in row.trials)
    if layout == "math_aps":
        ends = {(r.prompt, r.response.text.split()[-1]) for r in made}
        texts = {(row["question"], n["solution_prefix"].split()[-1]) for row in rows for n in row["reasoning_steps"]}
        assert ends <= texts


def rated(*ratings: int | None) -> list[dict[str, Any]]:
    return [{"text": f"t{number}", "rating": rating, "flagged": False} for number, rating in enumerate(ratings)]


HUMAN = {
    "question": {"problem": "P", "ground_truth_answer": "4"},
    "label": {
        "finish_reason": "found_error",
        "steps": [
            {"completions": rated(1, -1), "chosen_completion": 0, "human_completion": None},
            {"completions": rated(0), "chosen_completion": 0, "human_completion": None},
            {"completions": rated(-1), "chosen_completion": None, "human_completion": {"text": "mine", "rating": None}},
            {"completions": rated(-1, 0), "chosen_completion": None, "human_completion": None},
        ],
    },
    "is_quality_control_question": False,
}


def test_prm800k_branches_and_neutral_ratings() -> None:
    rows = prm800k(HUMAN, "here")
    assert [(row.completions, row.labels("hard")) for row in rows] == [
        (("t1",), [False]),
        (("t0", "t0", "t0"), [True, True, False]),
        (("t0", "t0", "mine", "t0"), [True, True, True, False]),
        (("t0", "t0", "mine", "t1"), [True, True, True, True]),
    ]
    (path,) = prm800k(HUMAN, "here", branches="chosen", neutral="bad")
    assert (path.completions, path.labels("hard")) == (("t0", "t0", "mine", "t0"), [True, False, True, False])
    assert prm800k(HUMAN, "here", branches="chosen", neutral="drop")[0].labels("hard") == [True, None, True, False]
    hidden = {**HUMAN, "is_quality_control_question": True}
    assert prm800k(hidden, "here") == [] and len(prm800k(hidden, "here", quality_control=True)) == 4
    with pytest.raises(ConfigError, match="neutral must be one of"):
        prm800k(HUMAN, "here", neutral="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "row", "message"),
    [
        ("math_shepherd", {"input": "q"}, r"f.jsonl, line 1: no field 'label'; it has input"),
        ("math_shepherd", {"input": "q Step 1: a", "label": "q Step 1: a"}, "its last step has no 'ки'"),
        ("math_shepherd", {**SHEPHERD, "label": "x"}, "field 'label': step 1 does not repeat the input"),
        ("math_shepherd", {"input": "q a ки", "label": "q a +"}, "'Step 1: ' must stand once"),
        ("rlhflow", {"conversations": [{"role": "user", "content": "q"}]}, "pairs of user and assistant; got 1 turns"),
        ("processbench", {**BENCH, "label": 3}, "must be -1 or the index of one of the 3 steps; got 3"),
        ("processbench", {**BENCH, "label": True}, "field 'label': must be int; got True"),
        (
            "math_aps",
            {"question": "Q", "reasoning_steps": [{"solution_prefix": "X", "mc_value": 1}]},
            "begin with the q",
        ),
        ("math_aps_tree", {"question": "Q", "reasoning_steps": {"children": 3}}, "field 'children': must be list"),
        ("prm800k", {"question": {"problem": "P"}, "label": {"steps": [{"completions": [{}]}]}}, "no field 'text'"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, layout: str, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_public(path, layout)


def test_unknown_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no layout 'csv'; take one of math_shepherd"):
        read_public(tmp_path / "f", "csv")
    assert set(READERS) == {"math_shepherd", "rlhflow", "processbench", "math_aps", "math_aps_tree", "prm800k"}
    unlabelled = StepRow(prompt="q", completions=("a",), successes=(0,), trials=(0,))
    with pytest.raises(DataError, match="Math-Shepherd rows have a label on every step; step 1"):
        to_math_shepherd(unlabelled)


def test_other_layouts_are_read_by_the_command_line(tmp_path: Path, tiny_policy: Path) -> None:
    from prm.train_config import TrainConfig
    from rewardkit.cli.prm import EvalJob, TrainJob, evaluate, train

    data = tmp_path / "shepherd.jsonl"
    data.write_text("\n".join(json.dumps(SHEPHERD) for _ in range(4)) + "\n")
    config = TrainConfig(init=str(tiny_policy), steps=1, rows=2, micro_rows=2, warmup=0)
    assert train(TrainJob(data=(data,), layout="math_shepherd", train=config, out=tmp_path / "run")) == 0
    bench = tmp_path / "bench.jsonl"
    rows = [{**BENCH, "id": "same", "steps": ["a", "b", "c"], "label": label} for label in (-1, 0, 1, 2)]
    bench.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    job = EvalJob(model=str(tmp_path / "run" / "model"), data=(bench,), layout="processbench", out=tmp_path / "eval")
    assert evaluate(job) == 0
    figures = json.loads((tmp_path / "eval" / "results.json").read_text())["steps"]
    assert figures["first_error_f1"]["erroneous"] == 3 and figures["first_error_f1"]["correct"] == 1
