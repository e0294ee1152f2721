"""The search trees of a report: which problems are shown, where nodes stand, what the side panel counts."""

from __future__ import annotations

import itertools
import random

import pytest

from rewardkit.report import tree_layout, trees
from rewardkit.report.contents import Searched, TreeEvent, TreeNode
from rewardkit.report.search_choice import MOST_CHARACTERS, Outline, choose_problems


def nodes_of(parents: list[int], scores: list[float | None] | None = None, draws: int = 1) -> list[TreeNode]:
    scores = scores or [None] * len(parents)
    return [
        TreeNode(parent=p, text="x", draws=draws, score=s, ended=None) for p, s in zip(parents, scores, strict=True)
    ]


# Which problems.


def outline(problem: str, correct: bool | None, cuts: int = 0, size: int = 10) -> Outline:
    return Outline(problem_id=problem, correct=correct, cuts=cuts, size=size)


def test_cuts_come_first_and_right_and_wrong_take_turns() -> None:
    rows = [outline(f"right{i}", True) for i in range(20)] + [outline(f"wrong{i}", False) for i in range(20)]
    rows += [outline("cut-right", True, 3), outline("cut-wrong", False, 1), outline("undecided", None)]
    rows += [outline("mixed", True), outline("mixed", False)]
    chosen = choose_problems(rows)
    assert chosen[:6] == ["cut-wrong", "cut-right", "mixed", "wrong0", "right0", "wrong1"]
    assert len(chosen) == len(set(chosen)) == 12
    assert choose_problems([]) == []


def test_a_page_has_room_for_one_problem_at_least() -> None:
    huge = [outline(str(i), True, size=MOST_CHARACTERS // 2 + 1) for i in range(3)]
    assert choose_problems(huge) == ["0"]
    assert choose_problems([outline(str(i), True, size=MOST_CHARACTERS // 2) for i in range(3)]) == ["0", "1"]


# Where nodes stand.


@pytest.mark.parametrize("seed", range(6))
def test_children_stand_right_of_parents_and_no_nodes_overlap(seed: int) -> None:
    draw = random.Random(seed)
    parents = [draw.randrange(max(0, number - draw.choice((2, 30))), number + 1) for number in range(120)]
    scores = [draw.choice((None, draw.random())) for _ in parents]
    nodes = [TreeNode(parent=p, text="", draws=draw.randrange(40), score=s, ended=None)
             for p, s in zip(parents, scores, strict=True)]  # fmt: skip
    layout = tree_layout.lay_out(nodes)
    places = list(zip(layout.xs, layout.ys, layout.radii, strict=True))
    assert len(places) == 121
    for number, node in enumerate(nodes, start=1):
        assert layout.xs[number] == layout.xs[node.parent] + tree_layout.COLUMN
    for (x, y, r), (other_x, other_y, other_r) in itertools.combinations(places, 2):
        assert (x - other_x) ** 2 + (y - other_y) ** 2 > (r + other_r + 4) ** 2
    for x, y, r in places:
        assert r < x < layout.width - r and 20 + r < y < layout.height - r, "inside, below the headings"


def test_better_steps_stand_higher_and_parents_in_the_middle() -> None:
    layout = tree_layout.lay_out(nodes_of([0, 0, 0, 0], [0.2, None, 0.9, 0.5]))
    assert layout.ys[3] < layout.ys[4] < layout.ys[1] < layout.ys[2]
    assert layout.ys[0] == (layout.ys[3] + layout.ys[2]) / 2
    alone = tree_layout.lay_out([])
    assert alone.depth == 0 and len(alone.xs) == 1


def test_a_deep_chain_is_laid_out_without_recursion() -> None:
    assert tree_layout.lay_out(nodes_of(list(range(5000)))).depth == 5000


def test_radii_grow_with_draws_up_to_a_limit() -> None:
    radii = [tree_layout.radius(draws) for draws in (0, 1, 2, 4, 1000)]
    assert radii == sorted(radii) and radii[0] == radii[1] < radii[2] and radii[-1] == tree_layout.LARGEST
    assert 2 * (tree_layout.LARGEST + 3.5) < tree_layout.ROW, "a finished node's ring keeps clear of its neighbour"


# What is said.


def test_the_side_panel_counts() -> None:
    nodes = [*nodes_of([0, 1], [0.5, 0.4], draws=3), TreeNode(parent=1, text="e", draws=2, score=None, ended="stop")]
    cuts = [TreeEvent(kind="cut", node=2, to=1, candidate="0", why="low") for _ in range(3)]
    prune = TreeEvent(kind="prune", node=2, to=None, candidate="", why="w")
    one = Searched(
        problem_id="p", strategy="s", prompt="q", answer="4", pred=r"So \boxed{5}", correct=False, tokens=1234,
        candidates=2, nodes=tuple(nodes), events=(*cuts, prune),
    )  # fmt: skip
    assert dict(trees.facts(one)) == {
        "chosen answer": "5 (✗ wrong)",
        "tokens generated": "1,234",
        "steps": "8 drawn, 3 distinct",
        "responses": "2 finished, 2 to choose from",
        "decisions": "3 cut back and drawn again; 1 left behind for better ones",
    }
