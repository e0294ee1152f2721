"""How problem and steps become token ids, and at which positions their scores are read: one class a convention.

    OwnReading      prompt and response as the policy drew them; read at each step's last token  (`prm/backbone.py`)
    TaggedText      one text with a tag behind every step; read at the tag's last token
    TaggedChat      the same inside the assistant's turn of a chat
    Turns           a user turn a step, each answered with a sign; read where the sign is predicted
    Pieces          prompt and every step tokenised alone, each step closed by a separator; read at its last token
    AnswerSpan      a chat with numbered steps; where each step ends (for sums over tokens)

What a score needs is a row of ids and a position a step; a position sees only what stands before it. Every public
convention takes step texts: the response is split at blank lines. Which checkpoint uses which, and from where that is
known, stands in `prm/adapters.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prm.backbone import StepInput, check_steps, encode_steps
from verifiers.core import Problem, Prompt, Response
from verifiers.errors import DataError
from verifiers.steps import BLANK_LINE, split_steps

_NUMBER = re.compile(r"^\s*Step \d+:")


class Reading(Protocol):
    """Rows of token ids with the positions of the steps' scores."""

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """One row. DataError where a step has no position of its own."""
        ...


def question(prompt: Prompt) -> str:
    """The prompt as one text: of chat messages, what the user said."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] for message in prompt if message["role"] == "user")


def numbered(steps: Sequence[str]) -> list[str]:
    """Steps with "Step 1: ", "Step 2: ", ... in front, in place of any numbering of that kind."""
    return [f"Step {number}: {_NUMBER.sub('', step).strip()}" for number, step in enumerate(steps, start=1)]


def _row(problem: Problem, response: Response, ids: Sequence[int], ends: Sequence[int], begin: int = 0) -> StepInput:
    steps = tuple(split_steps(response.text))
    if len(ends) != len(steps):
        raise DataError(
            f"response {response.sample} to problem {problem.id!r} has {len(steps)} steps, but its text as this model "
            f"reads it has {len(ends)} step marks; the problem or a step holds the model's tag"
        )
    return StepInput(ids=tuple(ids), prompt_length=begin, ends=tuple(ends), steps=steps)


def _texts(response: Response) -> list[str]:
    return [step.text for step in split_steps(response.text)]


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _render(tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **options))


@dataclass(frozen=True, kw_only=True)
class OwnReading:
    """The ids the policy drew, closed by the separator; see `prm/backbone.py`."""

    separator: str = BLANK_LINE

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """See `Reading`."""
        row = encode_steps(tokenizer, problem.prompt, response, separator=self.separator)
        check_steps(row, f"response {response.sample} to problem {problem.id!r}")
        return row


@dataclass(frozen=True, kw_only=True)
class TaggedText:
    """`opening` with the question, then the steps, each followed by the tag; tokenised as one text."""

    tag: str
    opening: str = "{question} "
    between: str = ""
    """Stands between a tag and the next step."""
    number: bool = False
    """Steps are numbered."""
    special: bool = True
    """The tokenizer adds its special tokens (a beginning of sequence, where it has one)."""

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """See `Reading`."""
        steps = _texts(response)
        steps = numbered(steps) if self.number else steps
        opening = self.opening.replace("{question}", question(problem.prompt))
        text = opening + self.between.join(step + self.tag for step in steps)
        ids = tokenizer.encode(text, add_special_tokens=self.special)
        mark = _plain(tokenizer, self.tag)[-1]
        return _row(problem, response, ids, [n for n, token in enumerate(ids) if token == mark])


@dataclass(frozen=True, kw_only=True)
class TaggedChat:
    """System text, the question as the user's turn, and the steps, each followed by the tag, as the assistant's."""

    tag: str
    system: str

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """See `Reading`."""
        turns = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": question(problem.prompt)},
            {"role": "assistant", "content": "".join(step + self.tag for step in _texts(response))},
        ]
        ids = _plain(tokenizer, _render(tokenizer, turns, add_generation_prompt=False))
        mark = _plain(tokenizer, self.tag)[-1]
        return _row(problem, response, ids, [n for n, token in enumerate(ids) if token == mark])


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The question and step 1 as the user's first turn, a turn a step, each answered with `sign`."""

    sign: str = "+"

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """See `Reading`. The sign is predicted three tokens before the end of the turn it closes."""
        turns: list[dict[str, str]] = []
        ends = []
        ids: list[int] = []
        for number, step in enumerate(_texts(response)):
            said = step.strip() if number else f"{question(problem.prompt)} {step.strip()}"
            turns += [{"role": "user", "content": said}, {"role": "assistant", "content": self.sign}]
            ids = _plain(tokenizer, _render(tokenizer, turns))
            ends.append(len(ids) - 3)
        return _row(problem, response, ids, ends)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The question, then each step and the separator, every piece tokenised by itself."""

    separator: str = "\n"
    begin: bool = True
    """A beginning-of-sequence id stands first, where the tokenizer has one."""
    begin_text: bool = False
    """The beginning of sequence is written before the question, and a newline behind it."""

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """See `Reading`."""
        text = question(problem.prompt)
        ids = [tokenizer.bos_token_id] if self.begin and tokenizer.bos_token_id is not None else []
        ids += _plain(tokenizer, f"{tokenizer.bos_token}{text}\n" if self.begin_text else text)
        begin = len(ids)
        closing = _plain(tokenizer, self.separator)
        closing = closing[-1:] if self.begin_text else closing
        ends = []
        for step in _texts(response):
            ids += _plain(tokenizer, step) + closing
            ends.append(len(ids) - 1)
        return _row(problem, response, ids, ends, begin)


@dataclass(frozen=True, kw_only=True)
class AnswerSpan:
    """A chat whose answer is the numbered steps, joined by blank lines; where the published sums begin and end.

    As the card of EurusPRM counts: the sum begins with the newline before the answer, the last step's ends with the
    mark that ends the turn, and an earlier step's takes in the blank line and one token more (two tokens of the next
    step where a full stop and the blank line are one token). So a step's score changes once it is not the last.
    """

    def encode(self, tokenizer: Any, problem: Problem, response: Response) -> StepInput:
        """See `Reading`; `prompt_length` is where the sum begins, `ends` the last position of each sum."""
        steps = numbered(_texts(response))
        sizes = []
        whole: list[int] = []
        for count in range(len(steps) + 1):
            turns = [
                {"role": "user", "content": question(problem.prompt)},
                {"role": "assistant", "content": "\n\n".join(steps[:count])},
            ]
            text = _render(tokenizer, turns, add_generation_prompt=False)
            whole = _plain(tokenizer, text)
            open_step = 0 < count < len(steps)
            sizes.append(len(_plain(tokenizer, text.strip() + ("\n\n" if open_step else ""))))
        ends = [size - 1 for size in sizes[1:]]
        return _row(problem, response, whole, ends, begin=sizes[0] - 2)
