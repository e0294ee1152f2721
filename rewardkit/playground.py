r"""The embedded default: word problems with known programs, and the small policy and PRM shipped for them.

A problem follows one story (`rewardkit/stories.py`) through 2 to 8 dependent equations. Its numbers are drawn
from a counter-based seed, so `problem(seed, split, index)` is the same everywhere. The program that made it
travels in `metadata["program"]`; `rewardkit/step_truth.py` computes from it whether a step is right. A text
belongs to the split that its own hash names, so that no two splits can ever share a text:
BLAKE2b(text) mod 10 = 0 is test, 1 is validation, the rest is train.

A solution is steps separated by a blank line, one equation each, the last with \boxed{answer}:

    Part: 3 * 6 = 18.

    Apples: 14 + 18 = 32. \boxed{32}
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rewardkit.stories import NAMES, OPERATIONS, STORIES, Story
from verifiers.core import Problem, derive_seed
from verifiers.errors import ConfigError, MissingFileError

Split: TypeAlias = Literal["train", "validation", "test"]

STEP_SEPARATOR = "\n\n"
TEMPERATURE = 1.0
"""The sampling temperature that playground figures are measured at."""
MAX_NEW_TOKENS = 192
"""Longer than any right solution of 8 steps."""
LARGEST = 999
"""No whole number in a right solution is larger."""


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A problem while it is told: sentences, given numbers, equations, and the running amount."""

    sentences: tuple[str, ...]
    given: tuple[Fraction, ...]
    nodes: tuple[tuple[str, str, str], ...]
    """(operator, left, right); an operand is "g3" (given number 3) or "n2" (result of equation 2)."""
    values: tuple[Fraction, ...]
    """Results of the equations."""
    labels: tuple[str, ...]
    side: tuple[int, ...]
    """Equations that are true and of no use."""
    running: str
    amount: Fraction


def number_text(value: Fraction) -> str:
    """A whole number as digits, anything else as p/q in lowest terms."""
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def split_of(text: str) -> Split:
    """The split a problem text belongs to, by its own hash."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def problems(count: int, *, split: Split = "test", seed: int = 0, start: int = 0) -> list[Problem]:
    """`count` problems of a split, the same for the same arguments on every machine."""
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"playground split must be train, validation or test; got {split!r}")
    return [problem(seed, split, index) for index in range(start, start + count)]


def problem(seed: int, split: Split, index: int) -> Problem:
    """Problem number `index` of a split: drawn again until its text hashes into the split."""
    for attempt in range(10_000):
        rng = random.Random(derive_seed("playground", seed, split, index, attempt))
        story = STORIES[rng.randrange(len(STORIES))]
        draft = _tell(story, rng)
        if draft is None:
            continue
        text = " ".join(draft.sentences) + "\n"
        if split_of(text) == split:
            return _finish(f"{split}-{seed}-{index}", story, draft, text)
    raise AssertionError("no text fell into the split in 10,000 draws")  # chance below 1e-400


def _finish(identity: str, story: Story, draft: _Draft, text: str) -> Problem:
    solution = []
    for number, ((operator, left, right), value, label) in enumerate(
        zip(draft.nodes, draft.values, draft.labels, strict=True)
    ):
        if number in draft.side:
            continue
        operands = (number_text(_value(name, draft)) for name in (left, right))
        solution.append(f"{label}: {f' {operator} '.join(operands)} = {number_text(value)}.")
    answer = number_text(draft.amount)
    solution[-1] += f" \\boxed{{{answer}}}"
    return Problem(
        id=identity,
        prompt=text,
        answer=answer,
        metadata={
            "kind": story.kind,
            "solution": STEP_SEPARATOR.join(solution),
            "program": {
                "given": [number_text(value) for value in draft.given],
                "nodes": [list(node) for node in draft.nodes],
                "side": list(draft.side),
                "answer": draft.running,
            },
        },
    )


def _value(name: str, draft: _Draft) -> Fraction:
    return draft.given[int(name[1:])] if name[0] == "g" else draft.values[int(name[1:])]


def _tell(story: Story, rng: random.Random) -> _Draft | None:
    """Tell one story: opening, events up to the wanted number of equations, question; None at a dead end."""
    wanted = rng.choices(range(2, 9), weights=(3, 5, 6, 5, 3, 2, 1))[0]
    actor, friend = rng.sample(NAMES, 2)
    names = {"n": actor, "f": friend}
    draft = _open(story, rng, names)
    aside_at = rng.randrange(1, wanted + 1) if rng.random() < 0.35 else -1
    told = 0
    while len(draft.nodes) - len(draft.side) < wanted:
        if told == aside_at:
            draft = _aside(story, draft, rng, names)
        told += 1
        room = wanted - (len(draft.nodes) - len(draft.side))
        following = _event(story, draft, rng, names, room)
        if following is None:
            return None
        draft = following
    return _add(draft, story.question.format(**names))


def _add(draft: _Draft, sentence: str, **changes: Any) -> _Draft:
    fields = {name: changes.get(name, getattr(draft, name)) for name in draft.__dataclass_fields__}
    return _Draft(**{**fields, "sentences": (*draft.sentences, sentence)})


def _open(story: Story, rng: random.Random, names: dict[str, str]) -> _Draft:
    empty = _Draft(sentences=(), given=(), nodes=(), values=(), labels=(), side=(), running="g0", amount=Fraction(0))
    if story.opening_groups and rng.random() < 0.4:
        x, y = Fraction(rng.randint(2, 9)), Fraction(rng.randint(3, 25))
        sentence = story.opening_groups.format(**names, x=x, y=y)
        return _add(
            empty, sentence, given=(x, y), nodes=(("*", "g0", "g1"),), values=(x * y,),
            labels=(story.total,), running="n0", amount=x * y,
        )  # fmt: skip
    start = Fraction(rng.randint(2, 24), 4) if story.fractional else Fraction(rng.randint(10, 150))
    sentence = story.opening.format(**names, x=number_text(start))
    return _add(empty, sentence, given=(start,), amount=start)


def _aside(story: Story, draft: _Draft, rng: random.Random, names: dict[str, str]) -> _Draft:
    sentence = rng.choice(story.asides)
    x, y = Fraction(rng.randint(2, 9)), Fraction(rng.randint(3, 25))
    if "{y}" not in sentence:
        x = Fraction(rng.randint(3, 60))
        return _add(draft, sentence.format(**names, x=x), given=(*draft.given, x))
    place = len(draft.given)
    return _add(
        draft, sentence.format(**names, x=x, y=y), given=(*draft.given, x, y),
        nodes=(*draft.nodes, ("*", f"g{place}", f"g{place + 1}")), values=(*draft.values, x * y),
        labels=(*draft.labels, ""), side=(*draft.side, len(draft.nodes)),
    )  # fmt: skip


def _event(story: Story, draft: _Draft, rng: random.Random, names: dict[str, str], room: int) -> _Draft | None:
    """One event of at most `room` equations that keeps the amount positive, exact and small; None if none."""
    for _ in range(50):
        operation, sentence = rng.choice(story.events)
        equations = OPERATIONS[operation]
        if len(equations) > room:
            continue
        x, y = _numbers(operation, story.fractional, draft.amount, rng)
        place = len(draft.given)
        operands = {"x": (f"g{place}", x), "y": (f"g{place + 1}", y), "t": (draft.running, draft.amount)}
        nodes, values, labels = list(draft.nodes), list(draft.values), list(draft.labels)
        for number, (left, operator, right) in enumerate(equations):
            nodes.append((operator, operands[left][0], operands[right][0]))
            values.append(apply(operator, operands[left][1], operands[right][1]))
            labels.append(story.total if number == len(equations) - 1 else story.group)
            operands["m"] = (f"n{len(nodes) - 1}", values[-1])
        if not all(_fits(value, story.fractional) for value in values[len(draft.values) :]):
            continue
        told = sentence.format(**names, x=number_text(x), y=number_text(y))
        given = (*draft.given, x, y) if "{y}" in sentence else (*draft.given, x)
        return _add(
            draft, told, given=given, nodes=tuple(nodes), values=tuple(values), labels=tuple(labels),
            running=f"n{len(nodes) - 1}", amount=values[-1],
        )  # fmt: skip
    return None


def _numbers(operation: str, fractional: bool, amount: Fraction, rng: random.Random) -> tuple[Fraction, Fraction]:
    """Candidate numbers for an event; `_event` rejects those that leave the range."""
    if operation in ("keep", "lose"):
        q = rng.choice((2, 2, 4) if fractional else (2, 3, 4, 5))
        return Fraction(1 if fractional or q == 2 else rng.randint(1, q - 1), q), Fraction(0)
    if operation in ("times", "share"):
        return Fraction(rng.randint(2, 4 if operation == "times" else 9)), Fraction(0)
    if operation in ("addmul", "submul"):
        return Fraction(rng.randint(2, 9)), Fraction(rng.randint(2, 25))
    if fractional:
        return Fraction(rng.randint(1, 12), 4), Fraction(0)
    return Fraction(rng.randint(2, 99)), Fraction(0)


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """One of + - * / on two numbers, exactly."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def _fits(value: Fraction, fractional: bool) -> bool:
    if fractional:
        return 0 < value <= 20 and 4 % value.denominator == 0
    return 0 < value <= LARGEST and value.denominator == 1


def asset(name: str) -> Path:
    """The path of a shipped playground file or folder (`policy`, `prm`, `labels.jsonl.gz`).

    Raises MissingFileError when it is neither in the checkout nor in the installed package.
    """
    here = Path(__file__).resolve().parent
    override = os.environ.get("REWARDKIT_PLAYGROUND")
    places = [Path(override)] if override else [here.parent / "data" / "playground", here / "_playground"]
    for place in places:
        if (place / name).exists():
            return place / name
    raise MissingFileError(
        f"the playground's {name!r} is missing: looked in {', '.join(map(str, places))}; "
        "reinstall RewardKit or run the scripts named in data/playground/README.md"
    )
