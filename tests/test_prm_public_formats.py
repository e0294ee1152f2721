"""Other projects' layouts: small rows by hand, round trips on the samples, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prm.formats import StepRow, read_stepwise
from prm.public_formats import READERS, er_prm, math_shepherd, openr, openrlhf, processbench, read_public, rlhflow
from prm.public_trees import math_aps, math_aps_tree, prm800k
from verifiers.errors import ConfigError, DataError, MissingFileError

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
    assert row.provenance == {"format": "math_shepherd", "task": "GSM8K"}


def test_variants_of_math_shepherd_by_hand() -> None:
    steps = ("Step 1: 1 + 1 = 2.", "Step 2: 2 + 2 = 5.")
    (row,) = openrlhf({"input": SHEPHERD["input"], "value": ["+", "-"]}, "here")
    assert short(row) == ("How many?", steps, (1.0, 0.0), (1, 1))
    (row,) = er_prm({"text": SHEPHERD["input"].removesuffix(" ки"), "value": [0.25, 1], "source": "gsm"}, "here")
    assert short(row) == ("How many?", steps, (0.25, 1.0), (1, 1))
    assert row.labels("soft") == [0.25, 1.0] and row.provenance == {"format": "er_prm", "source": "gsm"}
    tagged = {"question": "How many?", "process": "one ки two\n\n2 ки", "label": ["-", "+"]}
    (row,) = openr(tagged, "here")
    assert short(row) == ("How many?", ("one", "two", "2"), (0.0, 0.0, 1.0), (1, 0, 1))
    # What openr makes of flat MATH-APS: its default tag, and a process that repeats the question.
    flat = {"question": "How many?", "process": "How many?\n\none\n\ntwo \n\n\n\n\n", "label": ["+"]}
    (row,) = openr(flat, "here")
    assert short(row) == ("How many?", ("one", "two"), (0.0, 1.0), (0, 1))
    (row,) = openr({"question": "Q", "process": "Step: 1: a ки\nStep: 2: b ки", "labels": [1, 0]}, "here")
    assert short(row) == ("Q", ("Step: 1: a", "Step: 2: b"), (1.0, 0.0), (1, 1))


def test_a_file_may_be_one_json_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(" " + json.dumps([SHEPHERD, SHEPHERD], indent=4))
    assert read_public(path, "math_shepherd") == math_shepherd(SHEPHERD, "here") * 2
    path.write_text(json.dumps([SHEPHERD, 3]))
    with pytest.raises(DataError, match=r"list.json, row 2: must be a JSON object; got 3"):
        read_public(path, "math_shepherd")
    path.write_text("[1, ")
    with pytest.raises(DataError, match=r"list.json is not valid JSON"):
        read_public(path, "math_shepherd")
    with pytest.raises(MissingFileError, match=r"nowhere.jsonl does not exist"):
        read_public(tmp_path / "nowhere.jsonl", "openr")


def test_rlhflow_by_hand() -> None:
    (row,) = rlhflow(TURNS, "here")
    assert short(row) == ("How many?", ("Step 1: two", "Step 2: five"), (1.0, 0.0), (1, 1))
    assert row.provenance == {"format": "rlhflow"}


def test_processbench_labels_up_to_the_first_error() -> None:
    (row,) = processbench(BENCH, "here")
    assert short(row) == ("How many?", ("one", "more", "two", "three"), (0.0, 1.0, 0.0, 0.0), (0, 1, 1, 0))
    assert row.provenance["final_answer_correct"] is False and row.problem_id == "gsm8k-7"
    (right,) = processbench({**BENCH, "label": -1, "steps": ["a", "b"]}, "here")
    assert right.labels("hard") == [True, True]


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
    assert first.provenance == {"format": "math_aps", "final_answer": "3", "root": {"mc_value": 0.5}}


def test_math_aps_steps_end_at_blank_lines_alone() -> None:
    prefixes = ["Q", "Q\n\nx = 1", "Q\n\nx = 10", "Q\n\nx = 1 more", "Q\n\nx = 1\n\nend"]
    nodes = [{"solution_prefix": prefix, "mc_value": 0.25 * n} for n, prefix in enumerate(prefixes)]
    rows = math_aps({"question": "Q", "reasoning_steps": nodes}, "here")
    assert [(row.completions, row.successes) for row in rows] == [
        (("x = 10",), (8.0,)),
        (("x = 1 more",), (12.0,)),
        (("x = 1", "end"), (4.0, 16.0)),
    ]


def test_two_estimates_of_a_prefix_are_pooled() -> None:
    nodes = [{"solution_prefix": "Q\n\na", "mc_value": value} for value in (0.25, 0.75, 1.0)]
    (row,) = math_aps({"question": "Q", "reasoning_steps": nodes}, "here", trials=4)
    assert short(row) == ("Q", ("a",), (8.0,), (12,))


def test_the_number_of_roll_outs_is_read_or_the_least_that_makes_counts_whole() -> None:
    def tree(*nodes: dict[str, Any]) -> dict[str, Any]:
        return {"question": "Q", "reasoning_steps": {"mc_value": 0.5, "children": list(nodes)}}

    (row,) = math_aps_tree(tree({"text": "a", "mc_value": 3 / 32, "children": []}), "here")
    assert (row.successes, row.trials) == ((3.0,), (32,))
    (row,) = math_aps_tree(tree({"text": "a", "mc_value": 1 / 3, "children": []}), "here")
    assert (row.successes, row.trials) == ((16.0,), (48,))
    # AMCS: how many there were; none of its own is a finished response, and a state never visited has no label.
    leaf = {"text": "end", "mc_value": 1.0, "total_mc_rollouts_for_node": 0, "N_visits": 0, "children": []}
    never = {"text": "never", "mc_value": None, "children": []}
    node = {"text": "a", "mc_value": 0.1, "total_mc_rollouts_for_node": 40, "incorrect_continuations": ["x"]}
    first, second = math_aps_tree(tree({**node, "children": [leaf, never]}), "here")
    assert short(first) == ("Q", ("a", "end"), (4.0, 1.0), (40, 1))
    assert short(second) == ("Q", ("a", "never"), (4.0, 0.0), (40, 0))
    assert first.provenance["nodes"] == [{"incorrect_continuations": ["x"]}, {"N_visits": 0}]


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
    for row in made:  # every label is at the end of what it was about, as a whole count of 32 roll-outs an estimate
        assert row.trials[-1] in (32, 64, 96) and all(n in (0, 32, 64, 96) for n in row.trials)
        assert all(s == int(s) for s in row.successes)
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
    crossed = prm800k(HUMAN, "here", branches="cross")
    assert [row.labels("hard") for row in crossed] == [
        [first, True, False, last] for first in (True, False) for last in (False, True)
    ]
    many = {"completions": rated(*[1] * 22), "chosen_completion": 0}
    wide = {"question": {"problem": "P"}, "label": {"steps": [many] * 3}}
    assert len(prm800k(wide, "here")) == 3 * 21 + 1
    with pytest.raises(DataError, match="cross product of its completions has 10648 rows, more than 10000"):
        prm800k(wide, "here", branches="cross")
    with pytest.raises(ConfigError, match="neutral must be one of"):
        prm800k(HUMAN, "here", neutral="maybe")  # type: ignore[arg-type]


def test_prm800k_rows_of_both_phases(tmp_path: Path) -> None:
    """A give-up of phase 1 ends in an empty step, which must not lose the path; phase 2 ends at the first error."""
    empty = {"completions": None, "human_completion": None, "chosen_completion": None}
    path = [{"completions": rated(1), "chosen_completion": 0}, {"completions": rated(0), "chosen_completion": 0}]
    phase1 = {"question": {"problem": "P"}, "label": {"steps": [*path, empty], "finish_reason": "give_up"}}
    (row,) = prm800k(phase1, "here", neutral="drop")
    assert (row.completions, row.labels("hard")) == (("t0", "t0"), [True, None])
    assert row.provenance["finish_reason"] == "give_up"
    question = {"problem": "P", "ground_truth_solution": "so 4", "pre_generated_steps": ["t0", "t0", "t0"]}
    last = {"completions": rated(-1, 1), "human_completion": None, "chosen_completion": None}
    phase2 = {"generation": 9, "question": question, "label": {"steps": [*path, last], "total_time": 7}}
    rows = prm800k(phase2, "here", neutral="bad")
    assert [row.labels("hard") for row in rows] == [[True, False, False], [True, False, True]]
    assert rows[0].provenance["generation"] == 9 and rows[1].provenance["ground_truth_solution"] == "so 4"


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
        ("prm800k", {"question": {"problem": "P"}, "label": {"steps": [3]}}, "must be an object with the field"),
        (
            "prm800k",
            {"question": {"problem": "P"}, "label": {"steps": [{"completions": [{"text": "a", "rating": 2}]}]}},
            r"'steps'\[0\], 'completions'\[0\], field 'rating': must be -1, 0, 1 or null; got 2",
        ),
        (
            "prm800k",
            {"question": {"problem": "P"}, "label": {"steps": [{"completions": [], "chosen_completion": 0}]}},
            "field 'chosen_completion': must be an index of 0; got 0",
        ),
        ("openrlhf", {"input": "q Step 1: a ки", "value": ["+", "-"]}, "has 1 steps by 'ки', but there are 2 labels"),
        ("openrlhf", {"input": "q Step 1: a ки", "value": [0.5]}, r"'value'\[0\]: must be '\+' or '-'; got 0.5"),
        ("er_prm", {"text": "q Step 1: a ки", "value": [1.5]}, r"'value'\[0\]: must be a share in \[0, 1\]; got 1.5"),
        ("er_prm", {"text": "q a ки", "value": [0.5]}, "'Step 1: ' must stand once"),
        ("openr", {"question": "q", "process": "a ки", "label": ["?"]}, r"'label'\[0\]: must be '\+' or '-'; got"),
        ("openr", {"question": "q", "process": "a", "label": []}, "but there are 0 labels"),
        ("rlhflow", {"conversations": [3, 4]}, "pair 1: must be an object with the field 'content'; got 3"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, layout: str, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_public(path, layout)


def test_unknown_layouts_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layout 'csv'; take one of math_shepherd, .*prm800k, stepwise"):
        read_public(tmp_path / "f", "csv")
    variants = {"openrlhf", "er_prm", "openr"}
    trees = {"math_aps", "math_aps_tree", "prm800k"}
    assert set(READERS) == {"math_shepherd", "rlhflow", "processbench"} | variants | trees
    with pytest.raises(ConfigError, match="'math_aps' has no option 'neutral'; it has trials"):
        read_public(tmp_path / "f", "math_aps", neutral="bad")
    with pytest.raises(ConfigError, match="'stepwise' has no option 'trials'; it has none"):
        read_public(tmp_path / "f", "stepwise", trials=4)
    path = tmp_path / "trl.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completions": ["a"], "labels": [True]}) + "\n")
    assert read_public(path, "stepwise") == read_stepwise(path)


def test_other_layouts_are_read_by_the_command_line(tmp_path: Path, tiny_policy: Path) -> None:
    from prm.train_config import TrainConfig
    from rewardkit.cli.prm import EvalJob, TrainJob, evaluate, train
    from rewardkit.cli.prm_score import ModelChoice

    data = tmp_path / "shepherd.jsonl"
    data.write_text("\n".join(json.dumps(SHEPHERD) for _ in range(4)) + "\n")
    config = TrainConfig(init=str(tiny_policy), steps=1, rows=2, micro_rows=2, warmup=0)
    assert train(TrainJob(data=(data,), layout="math_shepherd", train=config, out=tmp_path / "run")) == 0
    bench = tmp_path / "bench.jsonl"
    rows = [{**BENCH, "id": "same", "steps": ["a", "b", "c"], "label": label} for label in (-1, 0, 1, 2)]
    bench.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    choice = ModelChoice(model=str(tmp_path / "run" / "model"))
    job = EvalJob(choice=choice, data=(bench,), layout="processbench", out=tmp_path / "eval")
    assert evaluate(job) == 0
    figures = json.loads((tmp_path / "eval" / "results.json").read_text())["steps"]
    assert figures["first_error_f1"]["erroneous"] == 3 and figures["first_error_f1"]["correct"] == 1
