"""What the policy wrote while it learned: of a few training steps the first group, each response with its reward.

A step is at most 30 KB of HTML: prompt and responses share what there is, long texts are folded, and what is cut is
said where it is cut. Everything that a model or a data set wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from rewardkit.report import words
from rewardkit.report.contents import RolloutResponse, RolloutStep
from rewardkit.report.heatmap import folded

MOST_BYTES = 30_000
"""Of a step."""
RESPONSES = 8
"""Of a step."""
FRAME = 1_200
"""Bytes set aside for the markup of a card and of a step."""
FILE = "rollouts.jsonl"
STOPS = {
    "stop": "finished",
    "length": "cut at the longest length",
    "repetition": "stopped: repeats itself",
    "rejected": "given up",
}


def rollouts(steps: Sequence[RolloutStep]) -> Markup:
    """All steps shown, as HTML; the last one is open."""
    last = steps[-1].step if steps else None
    return Markup("\n").join(_step(one, opened=one.step == last) for one in steps)


def _step(one: RolloutStep, *, opened: bool) -> Markup:
    shown = one.responses[:RESPONSES]
    hidden = len(one.responses) - len(shown)
    rewards = [response.reward for response in one.responses if response.reward is not None]
    room = MOST_BYTES - FRAME * (len(shown) + 1)
    prompt = _fitting(one.prompt, room // 4)
    room -= len(prompt.encode())
    cards = []
    for number, response in enumerate(shown):
        card = _card(response, number + 1, room // (len(shown) - number))
        cards.append(card)
        room -= max(0, len(card.encode()) - FRAME)
    return Markup(
        '<details class="problem"{}><summary><b>step {}</b> <span class="badge">{}</span> {}{}</summary>\n'
        '<div class="prompt">{}</div>\n<p class="reference">Reference answer: <b>{}</b></p>\n'
        '<div class="cards" style="--least:300px">{}</div>{}</details>'
    ).format(
        Markup(" open") if opened else "",
        words.number(one.step),
        one.why,
        _short(one.problem_id),
        f" · mean reward {words.number(sum(rewards) / len(rewards))}" if rewards else "",
        prompt,
        _short(one.answer) or "none",
        Markup("\n").join(cards) or Markup('<p class="note">No responses were kept.</p>'),
        Markup('<p class="note">{:,} more responses are in {}.</p>').format(hidden, FILE) if hidden else "",
    )


def _card(response: RolloutResponse, number: int, room: int) -> Markup:
    reward = "unscored" if response.reward is None else f"reward {words.number(response.reward)}"
    parts = [f"{_short(name)} {'–' if value is None else words.number(value)}" for name, value in response.parts[:12]]
    if response.unscored is not None:
        note = Markup('<p class="unscored">Unscored: {}</p>').format(_short(response.unscored))
    else:
        note = Markup("")
    return Markup(
        '<article class="card"><h4>response {} · {}</h4><p class="meta">{} · <span class="badge">{}</span></p>{}'
        '<div class="said">{}</div></article>'
    ).format(
        number,
        reward,
        " · ".join(parts) or "no parts",
        STOPS.get(response.stop_reason, _short(response.stop_reason)),
        note,
        _fitting(response.text, room) if response.text else Markup("<i>nothing</i>"),
    )


def _short(text: str) -> str:
    """A line of text that cannot grow without bounds."""
    return text if len(text) <= 120 else text[:120] + "…"


def _fitting(text: str, room: int) -> Markup:
    """A text, folded, its end cut off where its HTML would take more than `room` bytes."""
    most = len(text)
    while most > 40 and len(escape(text[:most]).encode()) > room:
        most = most * 4 // 5
    return folded(text, most=most, file=FILE)
