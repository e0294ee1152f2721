"""A small world for tests of search: scripted responses, a scorer that reads marks, an engine that answers in disorder.

Every response has steps `A`, `B`, ... followed by a mark: `+` is good (0.9), `~` fair (0.6), `-` bad (0.1). The last
step boxes the answer. A response is right when it boxes 1.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from search.engines.scripted_engine import ScriptedEngine
from verifiers.core import Continuation, GenerationRequest, Problem, Response, Sampling, Verdict
from verifiers.steps import split_steps
from verifiers.streams import Finished, Rounds

MARKS = {"+": 0.9, "~": 0.6, "-": 0.1}
SAMPLING = Sampling(max_new_tokens=200)


def texts(marks: str = "+-", depth: int = 3) -> list[str]:
    """All responses of `depth` marked steps; the answer is 1 when no step is bad, else the number of bad ones + 1."""
    found = []
    for steps in itertools.product(marks, repeat=depth):
        body = "\n\n".join(f"Step {chr(65 + n)}{mark}" for n, mark in enumerate(steps))
        found.append(f"{body} so \\boxed{{{steps.count('-') + 1}}}")
    return found


def problems(count: int) -> list[Problem]:
    return [Problem(id=f"p{n}", prompt=f"Question {n}\n", answer="1") for n in range(count)]


def engine(asked: Sequence[Problem], script: Sequence[str] | None = None) -> ScriptedEngine:
    return ScriptedEngine({str(p.prompt): list(script or texts()) for p in asked})


@dataclass
class Marks:
    """Scores steps by their marks; counts what it read."""

    rows: int = 0
    asked: list[str] = field(default_factory=list)

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        self.rows += len(responses)
        self.asked += [f"{p.id}: {r.text}" for p, r in zip(problems, responses, strict=True)]
        return [
            tuple(MARKS.get(next((c for c in step.text if c in MARKS), ""), 0.5) for step in split_steps(r.text))
            for r in responses
        ]


class Boxed:
    """A verifier: right is what boxes 1."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        found = [(r.text.rpartition("{")[2].rstrip("}"), "{1}" in r.text) for r in responses]
        return [Verdict.correct("", extracted=a) if right else Verdict.incorrect("", extracted=a) for a, right in found]


class Disorderly:
    """The same engine, whose rows end in a random order, one at a time."""

    def __init__(self, inner: ScriptedEngine, seed: int) -> None:
        self.inner, self.chance = inner, random.Random(seed)
        self.tokenizer, self.context_length, self.max_rows = inner.tokenizer, inner.context_length, 7

    @property
    def usage(self):  # type: ignore[no-untyped-def]
        return self.inner.usage

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        return self.inner.generate(requests, sampling)

    def stream(self, sampling: Sampling, *, keep: bool = False) -> _Disorder:
        return _Disorder(self, sampling)


class _Disorder(Rounds):
    def __init__(self, own: Disorderly, sampling: Sampling) -> None:
        super().__init__(own.inner, sampling)
        self.chance = own.chance

    def collect(self) -> list[Finished]:
        if not self._requests:
            return []
        ticket = self.chance.choice(sorted(self._requests))
        request = self._requests.pop(ticket)
        return [(ticket, self._engine.generate([request], self._sampling)[0])]
