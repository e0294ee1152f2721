"""The way back to other projects' layouts: reading what was written gives the rows again, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prm_public_formats import BENCH, HUMAN, SHEPHERD, TURNS

from prm.formats import StepRow, read_stepwise
from prm.public_formats import math_shepherd, processbench, read_public, rlhflow
from prm.public_trees import ROLLOUTS, math_aps, math_aps_tree, prm800k
from prm.public_writers import (
    WRITERS,
    to_math_aps,
    to_math_aps_tree,
    to_math_shepherd,
    to_prm800k,
    to_processbench,
    to_rlhflow,
    write_public,
)
from verifiers.errors import ConfigError, DataError
from verifiers.steps import split_steps

LINES = st.text("ab1+ки-. \n", min_size=1, max_size=6).map(str.strip)
TEXTS = LINES.filter(lambda text: [step.text for step in split_steps(text)] == [text] and "ки" not in text)
PROMPTS = st.text("Qq? \n", max_size=6).map(str.rstrip)
SETTINGS = settings(max_examples=60, deadline=None)


def row_of(steps: Sequence[str], successes: Sequence[float], trials: Sequence[int], **more: Any) -> StepRow:
    return StepRow(
        prompt="Q", completions=tuple(steps), successes=tuple(successes), trials=tuple(trials), **more
    )  # fmt: skip


def through(folder: Path, rows: Sequence[StepRow], layout: str, **options: Any) -> list[StepRow]:
    path = folder / "there.jsonl.gz"
    assert write_public(path, rows, layout) <= len(rows)
    return read_public(path, layout, **options)


@st.composite
def signed_rows(draw: st.DrawFn, layout: str) -> StepRow:
    """Numbered steps, each + or -, some behind unlabelled ones that are part of them."""
    texts: list[str] = []
    labels: list[bool | None] = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        inner = draw(st.lists(TEXTS, min_size=1, max_size=3))
        texts += [f"Step {number}: {inner[0]}", *inner[1:]]
        labels += [None] * (len(inner) - 1) + [draw(st.booleans())]
    kept = {"task": draw(st.sampled_from([None, "GSM8K"]))} if layout == "math_shepherd" else {}
    return StepRow(
        prompt=draw(PROMPTS),
        completions=tuple(texts),
        successes=tuple(float(label or 0) for label in labels),
        trials=tuple(int(label is not None) for label in labels),
        provenance={"format": layout, **kept},
    )


@pytest.mark.parametrize("layout", ["math_shepherd", "rlhflow"])
@given(data=st.data())
@SETTINGS
def test_signed_rows_survive(tmp_path_factory: pytest.TempPathFactory, layout: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(signed_rows(layout), min_size=1, max_size=3))
    assert through(tmp_path_factory.getbasetemp(), rows, layout) == rows


def test_rows_written_by_hand_survive() -> None:
    assert to_math_shepherd(math_shepherd(SHEPHERD, "here")[0]) == SHEPHERD
    assert to_rlhflow(rlhflow(TURNS, "here")[0]) == TURNS
    assert to_processbench(processbench(BENCH, "here")[0]) == BENCH


@given(
    steps=st.lists(st.text("ab \n", min_size=1, max_size=6), min_size=1, max_size=4),
    first=st.integers(-1, 3),
    name=st.sampled_from([None, "a model"]),
)
@SETTINGS
def test_processbench_rows_survive_to_the_character(steps: list[str], first: int, name: str | None) -> None:
    raw = {**BENCH, "generator": name, "steps": steps, "label": min(first, len(steps) - 1)}
    (row,) = processbench(raw, "here")
    assert to_processbench(row) == raw
    assert processbench(to_processbench(row), "here") == [row]


@st.composite
def rated_steps(draw: st.DrawFn) -> dict[str, Any]:
    """A row as PRM800K has them: a chosen path, perhaps a step by hand, perhaps an end at the first error."""

    def completion() -> dict[str, Any]:
        text = draw(st.text("ab \n", min_size=1, max_size=6))
        rating = draw(st.sampled_from([-1, 0, 1, None]))
        return {"text": text, "rating": rating, "flagged": draw(st.sampled_from([None, False, True]))}

    steps = []
    for _ in range(draw(st.integers(1, 4))):
        given = [completion() for _ in range(draw(st.integers(1, 3)))]
        human = {"text": draw(TEXTS), "rating": None, "source": "human", "flagged": False}
        by_hand = draw(st.booleans())
        chosen = None if by_hand else draw(st.integers(0, len(given) - 1))
        steps.append(
            {"completions": given, "human_completion": human if by_hand else None, "chosen_completion": chosen}
        )
    finish = "solution"
    if draw(st.booleans()):
        steps[-1] |= {"human_completion": None, "chosen_completion": None}
        finish = "found_error"
    solution = draw(st.sampled_from([{}, {"ground_truth_solution": "so", "pre_generated_steps": ["a", "b"]}]))
    return {
        "labeler": draw(st.sampled_from([None, "l1"])),
        "timestamp": None,
        "generation": draw(st.sampled_from([None, 9])),
        "is_quality_control_question": draw(st.booleans()),
        "is_initial_screening_question": False,
        "question": {"problem": draw(PROMPTS), "ground_truth_answer": "4", **solution},
        "label": {"steps": steps, "total_time": draw(st.sampled_from([None, 7])), "finish_reason": finish},
    }


@given(raw=rated_steps(), neutral=st.sampled_from(["good", "bad", "drop"]))
@SETTINGS
def test_prm800k_rows_survive_to_the_character(raw: dict[str, Any], neutral: Any) -> None:
    rows = prm800k(raw, "here", neutral=neutral, quality_control=True)
    assert to_prm800k(rows) == raw
    for branches in ("chosen", "cross"):
        some = prm800k(raw, "here", neutral=neutral, branches=branches, quality_control=True)  # type: ignore[arg-type]
        if some and branches == "chosen":  # alternatives are gone, so choices are counted anew; labels stay
            again = prm800k(to_prm800k(some), "here", neutral=neutral, branches="chosen", quality_control=True)
            assert [(row.completions, row.successes, row.trials) for row in again] == [
                (row.completions, row.successes, row.trials) for row in some
            ]
        elif some and not any(step["human_completion"] for step in raw["label"]["steps"]):
            assert to_prm800k(some) == raw


@given(raws=st.lists(rated_steps(), min_size=1, max_size=3), repeat=st.booleans())
@SETTINGS
def test_prm800k_files_survive(
    tmp_path_factory: pytest.TempPathFactory, raws: list[dict[str, Any]], repeat: bool
) -> None:
    rows = [made for raw in [*raws, *raws[: int(repeat)]] for made in prm800k(raw, "here", quality_control=True)]
    assert through(tmp_path_factory.getbasetemp(), rows, "prm800k", quality_control=True) == rows
    kept = [row for row in rows if not row.provenance.get("is_quality_control_question")]
    if kept:
        assert read_public(tmp_path_factory.getbasetemp() / "there.jsonl.gz", "prm800k") == kept


def test_prm800k_from_rows_of_ours() -> None:
    row = row_of(["a", "b", "c"], [1, 0, 2], [1, 0, 2], provenance={"ground_truth_answer": "4", "policy": "p"})
    written = to_prm800k([row])
    assert [(c["text"], c["rating"]) for step in written["label"]["steps"] for c in step["completions"]] == [
        ("a", 1),
        ("b\n\nc", 1),
    ]
    assert written["question"] == {"problem": "Q", "ground_truth_answer": "4"}
    assert written["label"]["finish_reason"] == "solution"
    (again,) = prm800k(written, "here")
    assert (again.completions, again.successes, again.trials) == (("a", "b", "c"), (1.0, 0.0, 1.0), (1, 0, 1))
    wrong = to_prm800k([row_of(["a", "b"], [0, 0], [4, 0])])
    assert [step["completions"][0]["rating"] for step in wrong["label"]["steps"]] == [-1, None]


def test_prm800k_alternatives_go_back_into_one_row() -> None:
    rows = prm800k(HUMAN, "here")
    steps = to_prm800k(rows)["label"]["steps"]
    assert [[(c["text"], c["rating"]) for c in step["completions"]] for step in steps] == [
        [("t0", 1), ("t1", -1)],
        [("t0", 0)],
        [("t0", -1)],
        [("t0", -1), ("t1", 0)],
    ]
    assert [step["chosen_completion"] for step in steps] == [0, 0, None, None]
    assert steps[2]["human_completion"]["text"] == "mine"
    # A row that was dropped leaves no gap; a label that was changed is what is written.
    fewer = to_prm800k([row for row in rows if row.completions != ("t1",)])["label"]["steps"]
    assert [len(step["completions"]) for step in fewer] == [1, 1, 1, 2]
    changed = to_prm800k([replace(rows[0], successes=(1.0,))])["label"]["steps"]
    assert changed[0]["completions"] == [{"text": "t1", "rating": 1, "flagged": False}]
    with pytest.raises(DataError, match=r"PRM800K has no rating for what a labeller wrote, it is right; .* step 3"):
        to_prm800k([replace(rows[2], successes=(1.0, 1.0, 0.0, 0.0))])


NODES = st.tuples(TEXTS, st.integers(1, 9)).flatmap(
    lambda node: st.tuples(st.just(node[0]), st.integers(0, node[1]), st.just(node[1]))
)


def path_row(problem: str, number: int, path: Sequence[tuple[str, int, int]], layout: str) -> StepRow:
    texts, successes, trials = zip(*path, strict=True)
    kept = {"format": layout, "final_answer": "3", "root": {"mc_value": 0.5}}
    return row_of(
        texts, map(float, successes), trials, problem_id=problem, sample=number, provenance=kept
    )  # fmt: skip


@given(problems=st.lists(st.lists(st.lists(NODES, min_size=1, max_size=3), min_size=1, max_size=4), max_size=2))
@SETTINGS
def test_trees_survive(tmp_path_factory: pytest.TempPathFactory, problems: list[list[list[Any]]]) -> None:
    rows = [
        path_row(str(problem), number, path, "math_aps_tree")
        for problem, paths in enumerate(problems, start=1)
        for number, path in enumerate(paths)
    ]
    if rows:
        assert through(tmp_path_factory.getbasetemp(), rows, "math_aps_tree") == rows


@given(paths=st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=5), counts=st.data())
@SETTINGS
def test_flat_prefixes_survive(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]], counts: st.DataObject
) -> None:
    """One label a prefix, and no response is the beginning of another."""
    labels: dict[tuple[str, ...], tuple[int, int]] = {}
    leaves = [
        path
        for number, path in enumerate(paths)
        if all(other[: len(path)] != path for other in (*paths[:number], *paths[number + 1 :]))
    ]
    rows = []
    for number, path in enumerate(leaves):
        nodes = []
        for depth in range(1, len(path) + 1):
            n = counts.draw(st.integers(1, 9))
            pair = labels.setdefault(tuple(path[:depth]), (counts.draw(st.integers(0, n)), n))
            nodes.append((path[depth - 1], *pair))
        rows.append(path_row("7", number, nodes, "math_aps"))
    if rows:
        assert through(tmp_path_factory.getbasetemp(), rows, "math_aps") == rows
        written = to_math_aps(rows)
        assert written["question_id"] == 7 and len(written["reasoning_steps"]) == len(labels) + 1


def test_a_tree_shares_what_rows_have_in_common() -> None:
    paths = [[("a", 1, 4), ("b", 0, 4)], [("a", 1, 4), ("c", 4, 4)], [("a", 2, 4)], [("a", 2, 4), ("b", 0, 4)]]
    tree = to_math_aps_tree([path_row("x1", n, path, "math_aps_tree") for n, path in enumerate(paths)])
    first, second, third = tree["reasoning_steps"]["children"]
    assert (first["mc_value"], first[ROLLOUTS]) == (0.25, 4)
    assert [child["text"] for child in first["children"]] == ["b", "c"]
    assert second["children"] == [] and [child["text"] for child in third["children"]] == ["b"]
    assert tree["question_id"] == "x1" and tree["reasoning_steps"]["mc_value"] == 0.5


def test_flat_and_tree_give_each_other(tmp_path: Path) -> None:
    rows = [path_row("1", n, [("a", 1, 4), (text, n, 4)], "math_aps") for n, text in enumerate("bcd")]
    write_public(tmp_path / "tree.jsonl", read_public(put(tmp_path, rows, "math_aps"), "math_aps"), "math_aps_tree")
    again = read_public(tmp_path / "tree.jsonl", "math_aps_tree")
    assert [row.completions for row in again] == [("a", "b"), ("a", "c"), ("a", "d")]
    assert [row.successes for row in again] == [(1.0, 0.0), (1.0, 1.0), (1.0, 2.0)]


def put(folder: Path, rows: Sequence[StepRow], layout: str) -> Path:
    write_public(folder / layout, rows, layout)
    return folder / layout


@pytest.mark.parametrize("layout", ["math_shepherd", "math_aps", "math_aps_tree"])
def test_samples_survive(shared_data: Path, tmp_path: Path, layout: str) -> None:
    path = shared_data / "formats" / f"samples_{layout.replace('_', '-')}.jsonl"
    rows = read_public(path, layout)
    assert through(tmp_path, rows, layout) == rows
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    if layout == "math_shepherd":
        assert [to_math_shepherd(row) for row in rows] == raw
    if layout == "math_aps_tree":  # to the character, but for the number of roll-outs that we add
        for source in raw:
            mine = [row for row in rows if row.prompt == source["question"]]
            assert bare(to_math_aps_tree(mine)["reasoning_steps"]) == bare(source["reasoning_steps"])


def bare(node: dict[str, Any]) -> tuple[Any, ...]:
    return node["text"].strip(), node["mc_value"], [bare(child) for child in node["children"]]


def test_nodes_keep_what_amcs_says_of_them() -> None:
    leaf = {"text": "end", "mc_value": 1.0, ROLLOUTS: 1, "N_visits": 0, "children": []}
    node = {"text": "a", "mc_value": 0.1, ROLLOUTS: 40, "incorrect_continuations": ["x"], "children": [leaf]}
    root = {"text": "Q", "mc_value": 0.5, ROLLOUTS: 8, "N_visits": 3, "children": [node]}
    raw = {"question": "Q", "final_answer": "3", "question_id": 7, "reasoning_steps": root}
    assert to_math_aps_tree(math_aps_tree(raw, "here")) == raw
    flat = [
        {"solution_prefix": "Q", "mc_value": 0.5},
        {"solution_prefix": "Q\n\na", "mc_value": 0.1, "N_visits": 2, ROLLOUTS: 40},
    ]
    raw = {"question": "Q", "final_answer": None, "reasoning_steps": flat}
    assert to_math_aps(math_aps(raw, "here")) == raw


@given(raw=rated_steps())
@SETTINGS
def test_stepwise_keeps_everything(tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]) -> None:
    rows = prm800k(raw, "here", quality_control=True)
    assert through(tmp_path_factory.getbasetemp(), rows, "stepwise") == rows
    assert read_stepwise(tmp_path_factory.getbasetemp() / "there.jsonl.gz") == rows


def test_steps_without_a_number_get_one() -> None:
    written = to_math_shepherd(row_of(["one", "two", "three"], [1, 0, 0], [1, 0, 1]))
    assert written["input"] == "Q Step 1: one ки\nStep 2: two\n\nthree ки"
    assert written["label"] == "Q Step 1: one +\nStep 2: two\n\nthree -"
    (again,) = math_shepherd(written, "here")
    assert again.completions == ("Step 1: one", "Step 2: two", "three") and again.trials == (1, 0, 1)


CHAT = ({"role": "system", "content": "S"}, {"role": "user", "content": "Q"})


@pytest.mark.parametrize(
    ("layout", "row", "message"),
    [
        ("math_shepherd", row_of(["a", "b"], [1, 0], [1, 0]), "a label on every step; the row of problem '', sample 0"),
        ("rlhflow", row_of(["a"], [0], [0]), "RLHFlow has a label on every step; .* has none at step 1 of 1"),
        ("math_shepherd", row_of(["a ки"], [1], [1]), "marks steps with 'ки'; .* has it in its text"),
        ("rlhflow", row_of(["Step 1: a Step 1: b"], [1], [1]), "'Step 1: '; .* has it twice"),
        ("rlhflow", row_of(["a"], [3], [8]), "right and wrong only; .* has 0.375 at step 1; .* set lossy"),
        ("prm800k", row_of(["a", "b"], [1, 0.5], [1, 1]), "PRM800K has labels of right and wrong only; .* 0.5 at st"),
        ("processbench", row_of(["a", "b"], [0.5, 1], [1, 1]), "ProcessBench has labels of right and wrong only"),
        ("processbench", row_of(["a", "b"], [1, 0], [1, 0]), "no label at step 2 of 2"),
        ("processbench", row_of(["a", "b"], [0, 1], [1, 1]), "a right one behind step 1"),
        ("math_aps", row_of(["a", "b"], [1, 0], [1, 0]), "share of roll-outs at every step; .* no trials at step 2"),
        ("math_aps_tree", row_of(["a"], [1], [2], prior=((1.0, 1.0),)), "has a prior or hard labels beside them"),
        ("math_aps", replace(row_of(["a"], [1], [2]), prompt=CHAT), "has one text as prompt; .* has 2 chat messages"),
    ],
)
def test_what_a_layout_cannot_express_is_refused(tmp_path: Path, layout: str, row: StepRow, message: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("old\n")
    with pytest.raises(DataError, match=message):
        write_public(path, [row_of(["x"], [1], [1]), row], layout)
    assert path.read_text() == "old\n"


def test_lossy_writes_what_can_be_said() -> None:
    assert to_rlhflow(row_of(["a"], [3], [8]), lossy=True)["conversations"][1]["content"] == "+"
    assert to_processbench(row_of(["a", "b", "c"], [0.5, 0, 1], [1, 1, 1]), lossy=True)["label"] == 1
    assert to_prm800k([row_of(["a"], [3], [8])], lossy=True)["label"]["steps"][0]["completions"][0]["rating"] == 1
    tree = to_math_aps_tree([row_of(["a"], [1], [2], prior=((1.0, 1.0),))], lossy=True)
    assert tree["reasoning_steps"]["children"][0]["mc_value"] == 0.5
    assert to_rlhflow(replace(row_of(["a"], [1], [1]), prompt=CHAT), lossy=True)["conversations"][0]["content"] == (
        "S\nQ Step 1: a"
    )
    # Hard labels that a rule of its own decided are what is written, without lossy too.
    decided = row_of(["a", "b"], [3, 0], [8, 0], hard=(False, True))
    assert [turn["content"] for turn in to_rlhflow(decided)["conversations"][1::2]] == ["-", "+"]
    same = [row_of(["a"], [s], [2], sample=n) for n, s in enumerate((1, 2))]
    with pytest.raises(DataError, match=r"one label a prefix; .* sample 1, gives 1 of 2 and another row 0.5 of 2"):
        to_math_aps(same)
    assert [node["mc_value"] for node in to_math_aps(same, lossy=True)["reasoning_steps"]] == [0.5]


def test_unknown_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layout 'openr' is not written; take one of math_shepherd, .*, stepwise"):
        write_public(tmp_path / "f", [row_of(["x"], [1], [1])], "openr")
    assert set(WRITERS) == {"math_shepherd", "rlhflow", "processbench", "prm800k", "math_aps", "math_aps_tree"}
