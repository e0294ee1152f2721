"""The search trees of a page as data for `trees.js`, which draws one at a time.

    texts      every distinct step text and reason once; nodes and events hold numbers into it
    problems   id, prompt, answer, and the searches of each: facts for the side panel, size of the drawing, nodes
               [parent, x, y, radius, draws, score or null, colour, how it ended (number or null), text], node 0 the
               prompt, events [kind, node, to or null, candidates, reason]; equal decisions are one event with all
               their candidates

Everything a run says goes in as JSON in which no character can end the script element, and trees.js puts it on the
page as text nodes, never as markup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rewardkit.report import words
from rewardkit.report.contents import Searched, Searches, TreeEvent
from rewardkit.report.heatmap import step_colour
from rewardkit.report.tree_layout import lay_out
from verifiers.answers import extract_answer

MOST_TEXT = 4_000
"""Characters of one step on the page."""
UNSCORED = "#c4c4bf"
ROOT = "#ffffff"

_ENDED = {
    "stop": "The response is finished here.",
    "length": "It ran out of tokens here, unfinished.",
    "repetition": "It was stopped here because the text repeats itself.",
    "rejected": "The strategy gave it up here.",
}
_COUNTED = {
    "cut": "cut back and drawn again",
    "prune": "left behind for better ones",
    "reject": "given up",
    "loop": "stopped for repeating itself",
    "budget": "out of tokens",
}
_VERDICTS = {True: "✓ right", False: "✗ wrong", None: "? undecided"}


def tree_data(searches: Searches) -> dict[str, Any]:
    """All that trees.js needs; see the module's first paragraph."""
    texts = _Texts()
    return {
        "problems": [_problem(own, texts) for own in searches.shown],
        "texts": list(texts.numbers),
    }


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class _Texts:
    """Distinct texts, numbered as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        cut = len(text) - MOST_TEXT
        if cut > 0:
            text = f"{text[:MOST_TEXT]} … [{cut:,} further characters are in searches.jsonl]"
        return self.numbers.setdefault(text, len(self.numbers))


def _problem(own: Sequence[Searched], texts: _Texts) -> dict[str, Any]:
    right = sum(one.correct is True for one in own)
    cuts = sum(event.kind == "cut" for one in own for event in one.events)
    label = f"{own[0].problem_id} ({right} of {len(own)} strategies right, {cuts:,} cut{'' if cuts == 1 else 's'})"
    return {
        "label": label,
        "prompt": own[0].prompt.strip(),
        "answer": own[0].answer or "none",
        "start": _start(own),
        "searches": [_search(one, texts) for one in own],
    }


def _start(own: Sequence[Searched]) -> int:
    """The search to show first: the one with most cuts, else with most other decisions, else the largest."""

    def interest(one: Searched) -> tuple[int, int, int]:
        kinds = Counter(event.kind for event in one.events)
        return kinds["cut"], sum(kinds[kind] for kind in _COUNTED), len(one.nodes)

    return max(range(len(own)), key=lambda number: interest(own[number]))


def _search(one: Searched, texts: _Texts) -> dict[str, Any]:
    layout = lay_out(one.nodes)
    nodes: list[list[Any]] = [[None, layout.xs[0], layout.ys[0], layout.radii[0], 0, None, ROOT, None, None]]
    for number, node in enumerate(one.nodes, start=1):
        nodes.append(
            [
                node.parent,
                layout.xs[number],
                layout.ys[number],
                layout.radii[number],
                node.draws,
                None if node.score is None else words.score(node.score),
                UNSCORED if node.score is None else step_colour(node.score),
                None if node.ended is None else texts.number(_ENDED.get(node.ended, f"It ended: {node.ended}.")),
                texts.number(node.text),
            ]
        )
    return {
        "label": f"{one.strategy} · {_VERDICTS[one.correct]}",
        "strategy": one.strategy,
        "facts": facts(one),
        "size": [layout.width, layout.height],
        "depth": layout.depth,
        "path": _chosen_path(one),
        "finished": [number for number, node in enumerate(one.nodes, start=1) if node.ended == "stop"],
        "nodes": nodes,
        "events": [
            [event.kind, event.node, event.to, candidates, texts.number(event.why)]
            for event, candidates in _together(one.events)
        ],
    }


def facts(one: Searched) -> list[tuple[str, str]]:
    """What the side panel says of a search: (name, value)."""
    answer = extract_answer(one.pred) if one.pred else None
    counts = Counter(event.kind for event in one.events)
    decisions = [f"{counts[kind]:,} {meaning}" for kind, meaning in _COUNTED.items() if counts[kind]]
    finished = sum(node.draws for node in one.nodes if node.ended == "stop")
    rows = [
        ("chosen answer", f"{'none found' if answer is None else answer} ({_VERDICTS[one.correct]})"),
        ("tokens generated", words.number(one.tokens)),
        ("steps", f"{sum(node.draws for node in one.nodes):,} drawn, {len(one.nodes):,} distinct"),
        ("responses", f"{finished:,} finished, {one.candidates:,} to choose from"),
        ("decisions", "; ".join(decisions) or "none on the way"),
    ]
    return rows


def _chosen_path(one: Searched) -> list[int]:
    """Nodes from the prompt to the chosen response's last step; empty where nothing was chosen."""
    ends = [event.node for event in one.events if event.kind == "choose"]
    if not ends:
        return []
    path = [ends[-1]]
    while path[-1]:
        path.append(one.nodes[path[-1] - 1].parent)
    return path[::-1]


def _together(events: Sequence[TreeEvent]) -> list[tuple[TreeEvent, list[str]]]:
    """Equal decisions about a node as one, with the candidates they concern (a candidate twice stands twice)."""
    found: dict[tuple[str, int, int | None, str], tuple[TreeEvent, list[str]]] = {}
    for event in events:
        key = (event.kind, event.node, event.to, event.why)
        found.setdefault(key, (event, []))[1].append(event.candidate)
    return list(found.values())
