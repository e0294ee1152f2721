"""The step heat-map: solutions as lines, each with its score as background colour and as a printed number.

    colour   orange (0) - white (0.5) - blue (1), light enough for dark text everywhere; told apart by people with
             any colour blindness. Scores outside [0, 1] take the colour of the nearer end, the number stays.
    marks    the true label where it is known: right, wrong (the first one named), useless

Of one problem the chosen responses stand left of the rejected ones. A sample chosen by several rules is one card
with several roles. What is cut for size is said where it is cut: the first 12 problems, up to four responses of
each (one of every role first), 60 steps, and long steps folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from rewardkit.report import words
from rewardkit.report.contents import Answered, Sample

PROBLEMS, RESPONSES, STEPS = 12, 4, 60
FOLD, MOST = 700, 20_000
"""Characters of a step that are open, and that are on the page at all."""
OPEN = 3
"""Problems unfolded at first."""

_LOW, _MIDDLE, _HIGH = (0xF2, 0xA0, 0x57), (0xFA, 0xF8, 0xF4), (0x86, 0xBC, 0xE6)
_MARKS = {"right": "✓ right", "wrong": "✗ wrong", "useless": "○ useless"}
_JUDGED = {
    True: ("correct", "✓ correct"),
    False: ("incorrect", "✗ incorrect"),
    None: ("undecided", "? undecided"),
}


def step_colour(score: float) -> str:
    """The background of a step with this score, as #rrggbb."""
    score = min(1.0, max(0.0, score))
    start, end, share = (_LOW, _MIDDLE, 2 * score) if score < 0.5 else (_MIDDLE, _HIGH, 2 * score - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(start, end, strict=True))


def heatmap(samples: Sequence[Sample]) -> Markup:
    """All problems shown, as HTML; empty for no samples."""
    shown = Markup("\n").join(_problem(sample, opened=i < OPEN) for i, sample in enumerate(samples[:PROBLEMS]))
    rest = len(samples) - PROBLEMS
    if rest <= 0:
        return shown
    return shown + Markup('\n<p class="note">{:,} more problems are in samples.jsonl.</p>').format(rest)


def scale() -> Markup:
    """The legend: five colours with their scores."""
    cells = Markup("").join(
        Markup('<span style="background:{}">{}</span>').format(step_colour(score), f"{score:.2f}")
        for score in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return Markup('<span class="scale" role="img" aria-label="colours of scores from 0 to 1">{}</span>').format(cells)


def _problem(sample: Sample, *, opened: bool) -> Markup:
    merged = _merge(sample.responses)
    cards = _select(merged)
    badges = Markup(" ").join(_badge(card.correct, card.role) for card in cards)
    hidden = len(merged) - len(cards)
    return Markup(
        '<details class="problem"{}><summary><b>{}</b> {}</summary>\n'
        '<div class="prompt">{}</div>\n<p class="reference">Reference answer: <b>{}</b></p>\n'
        '<div class="cards" style="--least:{}">{}</div>{}</details>'
    ).format(
        Markup(" open") if opened else "",
        sample.problem_id,
        badges,
        folded(sample.prompt),
        sample.answer or "none",
        "300px" if len(cards) == 3 else "400px",
        Markup("\n").join(_card(card) for card in cards) or Markup('<p class="note">No responses were kept.</p>'),
        Markup('<p class="note">{:,} more responses are in samples.jsonl.</p>').format(hidden) if hidden else "",
    )


def _merge(responses: Sequence[Answered]) -> list[Answered]:
    """One entry a sample, with all its roles."""
    found: dict[tuple[int, tuple[str, ...]], Answered] = {}
    for one in responses:
        key = (one.sample, one.steps)
        if key in found and one.role != found[key].role:
            one = replace(found[key], role=f"{found[key].role} · {one.role}")
        found[key] = one
    return list(found.values())


def _rejected(response: Answered) -> bool:
    return response.role.startswith("rejected")


def _select(responses: Sequence[Answered]) -> list[Answered]:
    """At most RESPONSES: the first of every role, then others, rejected ones last."""
    firsts = list({response.role: response for response in reversed(responses)}.values())[::-1]
    others = [response for response in responses if response not in firsts]
    kept = (sorted(firsts, key=_rejected) + others)[:RESPONSES]
    return sorted(kept, key=_rejected)


def _badge(correct: bool | None, label: str) -> Markup:
    kind, text = _JUDGED[correct]
    return Markup('<span class="badge {}">{}: {}</span>').format(kind, label, text)


def _card(response: Answered) -> Markup:
    scores = [score for score in response.scores if score is not None]
    kind, judged = _JUDGED[response.correct]
    lowest = response.scores.index(min(scores)) if len(scores) > 1 else -1
    first_wrong = response.truth.index("wrong") if response.truth and "wrong" in response.truth else -1
    lines = Markup("\n").join(
        _step(
            i,
            text,
            response.scores[i],
            None if response.truth is None else response.truth[i],
            lowest=i == lowest,
            first_wrong=i == first_wrong,
        )
        for i, text in enumerate(response.steps[:STEPS])
    )
    hidden = len(response.steps) - STEPS
    more = Markup('<p class="note">{:,} more steps are in samples.jsonl.</p>').format(hidden)
    return Markup(
        '<article class="card {}"><h4>{}</h4><p class="meta">sample {} · answer <b>{}</b> · '
        '<span class="badge {}">{}</span></p><ol class="steps">{}</ol>{}<p class="meta">{}</p></article>'
    ).format(
        "rejected" if _rejected(response) else "chosen",
        response.role,
        response.sample,
        response.extracted if response.extracted is not None else "none found",
        kind,
        judged,
        lines,
        more if hidden > 0 else "",
        _summary(scores),
    )


def _summary(scores: Sequence[float]) -> str:
    if not scores:
        return "These steps were not scored."
    return (
        f"lowest {words.score(min(scores))} · last {words.score(scores[-1])} · product {words.score(math.prod(scores))}"
    )


def _step(index: int, text: str, score: float | None, truth: str | None, *, lowest: bool, first_wrong: bool) -> Markup:
    number = Markup('<span class="none">not scored</span>')
    if score is not None:
        number = Markup("<b>{}</b>{}").format(words.score(score), Markup(" <i>lowest</i>") if lowest else "")
    mark = Markup("")
    if truth is not None:
        label = _MARKS[truth] + (" (first)" if first_wrong else "")
        mark = Markup('<span class="mark {}">{}</span>').format(truth, label)
    return Markup(
        '<li style="background:{}"><span class="no">{}</span><div class="text">{}</div>'
        '<span class="score">{}{}</span></li>'
    ).format("#f1f1ee" if score is None else step_colour(score), index + 1, folded(text), number, mark)


def folded(text: str, *, most: int = MOST, file: str = "samples.jsonl") -> Markup:
    """A text, escaped; a long one with its rest folded, one of more than `most` characters cut with a word on it."""
    opened = min(FOLD, most)
    if len(text) <= opened:
        return Markup("{}").format(text)
    cut = len(text) - most
    further = Markup(" <i>… {:,} further characters are in {}.</i>").format(cut, file) if cut > 0 else ""
    if most <= FOLD:
        return Markup("{}{}").format(text[:opened], further)
    return Markup(
        '{}<details class="more"><summary>… show {:,} more characters</summary>{}{}</details>'
        '<i class="cut">… {:,} more characters</i>'
    ).format(text[:opened], min(len(text), most) - opened, text[opened:most], further, len(text) - opened)
