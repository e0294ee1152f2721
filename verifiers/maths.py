"""The math verifier: find the answer in a response, read it, compare it with the reference.

    response --answers--> text --latex--> tree --equality--> verdict
                                                  (sympy in a worker only where nothing else can tell)

Everything but the last stage runs in the caller's thread and is bounded by counters. A response without an
answer is incorrect (kind no_answer_in_response); a reference without one is undecided (kind no_answer). The
reference may be a bare answer or a whole solution with a box, `####` or `A:`.
"""

from __future__ import annotations

import re
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from verifiers.answers import AnswerPolicy, find_answer, find_choice, is_prose
from verifiers.batch import BatchPool
from verifiers.choices import is_choice, names_several
from verifiers.core import Problem, Response, Verdict
from verifiers.equality import EqualityPolicy, Parsed, judge_equal, read
from verifiers.errors import ConfigError
from verifiers.sandbox import WorkerPool
from verifiers.scalars import Finding, no, yes
from verifiers.trees import Node, encode

CACHED_REFERENCES = 4096
"""References that one verifier keeps parsed."""
_SAYS_MORE = re.compile(
    r"(?<!\\)\b(?:than|least|most|except|multiples?|divisible|equal to|sum|product|difference|square|root|power|plus"
    r"|minus|times|twice|half|third|more|less|greater|negative|all|any|every|no|guess|a bit)\b",
    re.IGNORECASE,
)
_EXPLICIT = ("boxed", "hashes", "phrase")
_REFERENCE_POLICY = AnswerPolicy(unfinished_thinking=True)


class SymbolicProver:
    """The last stage of equality: sympy in a pool of worker processes, started when first asked."""

    def __init__(self, *, timeout_s: float = 1.2, memory_mb: int = 1024, workers: int = 1) -> None:
        """`timeout_s` in seconds a question, `memory_mb` in MiB a worker."""
        self.pool = WorkerPool("verifiers.symbolic", timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)

    def __call__(self, one: Node, two: Node) -> Finding:
        """Equal, not equal, or undecided of kind timeout, memory, crash or unproved."""
        reply = self.pool.ask({"a": encode(one), "b": encode(two)})
        if reply.value is None:
            return Finding(None, reply.failure, f"sympy was stopped: {reply.detail}")
        equal = reply.value.get("equal")
        if equal is None:
            return Finding(None, "unproved", f"sympy cannot tell {reply.value.get('detail', '')}".strip())
        return yes("symbolic", "sympy proves it") if equal else no("symbolic", "sympy disproves it")


class MathVerifier:
    """Judges responses to problems with one mathematical answer; a `Scorer`, safe to share among threads."""

    needs_answer: ClassVar[bool] = True

    def __init__(
        self,
        *,
        timeout_s: float = 1.2,
        memory_mb: int = 1024,
        workers: int = 1,
        answer_policy: AnswerPolicy | None = None,
        equality_policy: EqualityPolicy | None = None,
    ) -> None:
        """`timeout_s` seconds and `memory_mb` MiB bound sympy, the last stage; `workers` processes judge a batch."""
        self.answer_policy = answer_policy or AnswerPolicy()
        self.equality_policy = equality_policy or EqualityPolicy()
        self.workers = workers
        self._prover = SymbolicProver(timeout_s=timeout_s, memory_mb=memory_mb)
        settings = {
            "timeout_s": timeout_s,
            "memory_mb": memory_mb,
            "answer_policy": asdict(self.answer_policy),
            "equality_policy": asdict(self.equality_policy),
        }
        self._batch = BatchPool(settings=settings, workers=workers)
        self._references: OrderedDict[str, Parsed] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, response: str, answer: str) -> Verdict:
        """The verdict on one response; `answer` is the reference. Never raises on any two texts.

        A defect of the verifier itself is an undecided verdict of kind `defect` that names it: please report it.
        """
        return self._guarded(self._verify, response, answer)

    def compare(self, answer: str, reference: str) -> Verdict:
        """The verdict on a bare answer; where it stands in a sentence, on what the sentence says."""
        return self._guarded(self._compare, answer, reference)

    def _guarded(self, judge: Callable[[str, str], Verdict], one: str, two: str) -> Verdict:
        try:
            return judge(one, two)
        except Exception as error:  # one answer must not end a run of a million
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"a defect in {Path(place.filename).name}, line {place.lineno}: {type(error).__name__}: {error}"
            return Verdict.undecided(reason[:300], kind="defect")

    def _verify(self, response: str, answer: str) -> Verdict:
        reference = self._reference(answer)
        if not reference.canonical:
            return Verdict.undecided("no answer found in the reference", kind="no_answer")
        found = find_answer(response, policy=self.answer_policy)
        verdict = Verdict.incorrect("no answer found", kind="no_answer_in_response")
        if found is not None:
            verdict = self._judge(found.text, reference)
            if verdict.score == 1.0 or found.rule in ("boxed", "choice") or names_several(found.text):
                return verdict
        # What was found is not the letter asked for: perhaps the response names one elsewhere.
        chosen = find_choice(response, policy=self.answer_policy) if is_choice(reference) else None
        return self._judge(chosen.text, reference) if chosen else verdict

    def _compare(self, answer: str, reference: str) -> Verdict:
        known = self._reference(reference)
        explicit = reference_text(answer)
        verdict = self._judge(explicit, known)
        if verdict.score != 1.0 and explicit == answer and (is_prose(answer) or verdict.kind == "answer_unparsable"):
            if _SAYS_MORE.search(answer, 0, 2_000):
                return verdict  # "greater than 5" is not 5
            again = self._verify(answer, reference)
            return verdict if again.kind == "no_answer_in_response" else again
        return verdict

    def _judge(self, answer: str, reference: Parsed) -> Verdict:
        return judge_equal(read(answer), reference, self.equality_policy, self._prover)

    def verify_batch(self, responses: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """One verdict a response, in order; with several workers in as many processes."""
        if len(responses) != len(answers):
            raise ConfigError(
                f"verify_batch needs one reference a response; got {len(responses)} responses and "
                f"{len(answers)} answers"
            )
        pairs = list(zip(responses, answers, strict=True))
        if self.workers == 1 or len(pairs) < 2:
            return [self.verify(*pair) for pair in pairs]
        return self._batch.judge(pairs, self.verify)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """The Scorer protocol; ConfigError for a problem without a reference answer."""
        if len(problems) != len(responses):
            raise ConfigError(
                f"judge needs one problem a response; got {len(problems)} problems and {len(responses)} responses"
            )
        answers: list[str] = []
        for problem in problems:
            if problem.answer is None:
                raise ConfigError(
                    f"problem {problem.id!r} has no reference answer; give Problem.answer or leave it out"
                )
            answers.append(problem.answer)
        return self.verify_batch([response.text for response in responses], answers)

    def close(self) -> None:
        """End the worker processes; they start again when needed."""
        self._prover.pool.close()
        self._batch.pool.close()

    def _reference(self, answer: str) -> Parsed:
        with self._lock:
            known = self._references.get(answer)
            if known is not None:
                self._references.move_to_end(answer)
                return known
        parsed = read(reference_text(answer))
        with self._lock:
            self._references[answer] = parsed
            while len(self._references) > CACHED_REFERENCES:
                self._references.popitem(last=False)
        return parsed

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_references")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._references = OrderedDict()
        self._lock = threading.Lock()


_defaults: dict[EqualityPolicy, MathVerifier] = {}
_defaults_lock = threading.Lock()


def default_verifier(policy: EqualityPolicy | None = None) -> MathVerifier:
    """The verifier behind `math_equal`: one worker, 1.2 s, 1 GiB; one a policy, made when first needed."""
    policy = policy or EqualityPolicy()
    with _defaults_lock:
        return _defaults.setdefault(policy, MathVerifier(equality_policy=policy))


def reference_text(answer: str) -> str:
    """The answer within a reference: what a box, `####` or a phrase marks, else the text itself."""
    if any(mark in answer for mark in ("boxed", "fbox", "####", "\n", "nswer", "A:")):
        found = find_answer(answer, policy=_REFERENCE_POLICY)
        if found is not None and (found.rule in _EXPLICIT or "\n" in answer.strip()):
            return found.text
    return answer
