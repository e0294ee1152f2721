r"""Process reward models that write a critique and then say yes or no.

    GenPRM     (Zhao et al. 2025, arXiv 2504.00891) a paragraph a user turn; the critique follows it directly and ends
               in a boxed verdict; earlier critiques stand as the assistant's turns.
               score = softmax(logits of "Yes", "No")[Yes], where the verdict is predicted
    ThinkPRM   (Khalifa et al. 2025, arXiv 2504.16828) one run a prefix of the solution: a chain of thought after
               "Let's verify step by step:", then "Is the solution correct?"
               score = softmax(logits of " yes", " no")[yes] at the end

Critiques are written greedily, all responses at once, step after step. A critique without a verdict gets its opening
("**Judgement**: $\boxed{") put in its mouth and is read behind it. Code that a critique contains is never run:
GenPRM's own pipeline executes it; here the model reasons without its output.

`write` can be replaced by any function from prompts (token ids) to continuations (text), such as a vLLM engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import torch

from prm.adapters import Parts
from prm.backbone import ModelCard
from prm.model import ProcessModel
from prm.readings import numbered, question
from verifiers.core import Problem, Response, Usage
from verifiers.errors import ConfigError
from verifiers.steps import split_steps

Write: TypeAlias = Callable[[Sequence[Sequence[int]], str], list[str]]
"""Continues prompts until a text appears (it stays) or the model ends."""

_GENPRM_SYSTEM = "You are a math teacher. Your task is to review and critique the paragraphs in solution step by step."
_GENPRM_OPENING = "<analyze>\nLet's analyze the Paragraph {number} step by step: "
_GENPRM_END = "</output>"
_VERDICT = "<output>\n**Judgement**: $\\boxed{"
_THINKPRM_TASK = (
    "You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n{problem}\n\n"
    "[Solution]\n\n{solution}\n\nReview and critique each step in the proposed solution to determine whether each step "
    "is correct. If the solution is incomplete, only verify the provided steps."
)
_THINKPRM_OPENING = "\nLet's verify step by step:"
_THINKPRM_QUESTION = "\nIs the solution correct?"


class GenerativeModel(ProcessModel):
    """Common to both kinds: writing, reading a pair of tokens, counting."""

    good, bad = "Yes", "No"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        card: ModelCard | None = None,
        *,
        write: Write | None = None,
        max_new_tokens: int = 2048,
        batch_tokens: int = 16_384,
    ):
        super().__init__(model, tokenizer, card, head=torch.nn.Identity(), batch_tokens=batch_tokens)
        self.write = write or self._generate
        self.max_new_tokens = max_new_tokens
        self._pair = [tokenizer.encode(word, add_special_tokens=False)[-1] for word in (self.good, self.bad)]

    @classmethod
    def assemble(cls, parts: Parts, *, device: str, batch_tokens: int) -> Self:
        """See `ProcessModel.assemble`."""
        return cls(parts.model.to(device), parts.tokenizer, parts.card, batch_tokens=batch_tokens)

    def log_odds(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        """Natural logarithm of P(good) / P(bad) a step, of a critique's verdict."""
        if len(problems) != len(responses):
            raise ConfigError(f"there must be one problem a response; got {len(problems)} and {len(responses)}")
        steps = [[step.text for step in split_steps(response.text)] for response in responses]
        asked = [question(problem.prompt) for problem in problems]
        found: list[list[float]] = [[] for _ in steps]
        self._begin(len(steps))
        for number in range(max(map(len, steps), default=0)):
            live = [n for n, row in enumerate(steps) if number < len(row)]
            for n, odds in zip(live, self._judge(live, asked, steps, number), strict=True):
                found[n].append(odds)
        return [tuple(row) for row in found]

    def _begin(self, count: int) -> None:
        """Before the first step of `count` responses."""

    def _judge(self, live: list[int], asked: list[str], steps: list[list[str]], number: int) -> list[float]:
        """Log-odds of step `number` of the responses in `live`."""
        raise NotImplementedError

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.inference_mode()
    def _pair_odds(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Logit of `good` minus logit of `bad` as the next token of each row."""
        found = []
        for row in rows:
            ids = torch.tensor([list(row)], device=self.model.device)
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
            found.append(float(logits[self._pair[0]] - logits[self._pair[1]]))
        self._usage += Usage(prefill_tokens=sum(map(len, rows)), calls=len(rows))
        return found

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Sequence[int]], until: str) -> list[str]:
        """Greedy continuations, padded on the left."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        drawn = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad,
            **({"stop_strings": [until], "tokenizer": self.tokenizer} if until else {}),
        )[:, width:]
        self._usage += Usage(prefill_tokens=sum(map(len, prompts)), decoded_tokens=int((drawn != pad).sum()), calls=1)
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
        # A row that ended early goes on being padded; what stands behind the end is not its own.
        return [text.split(until)[0] + until if until and until in text else text for text in texts]


class GenPrm(GenerativeModel):
    """GenPRM, without running its code."""

    def _begin(self, count: int) -> None:
        self._turns: list[list[dict[str, str]]] = [
            [{"role": "system", "content": _GENPRM_SYSTEM}] for _ in range(count)
        ]

    def _judge(self, live: list[int], asked: list[str], steps: list[list[str]], number: int) -> list[float]:
        openings = []
        start = _GENPRM_OPENING.format(number=number + 1)
        for n in live:
            said = steps[n][number] if number else f"Question: {asked[n]}\n\n{steps[n][0]}"
            self._turns[n].append({"role": "user", "content": said})
            text = self.tokenizer.apply_chat_template(self._turns[n], tokenize=False)
            openings.append(text.removesuffix(self.tokenizer.eos_token))
        critiques = self.write([self._ids(opening + start) for opening in openings], _GENPRM_END)
        rows = []
        for n, opening, critique in zip(live, openings, critiques, strict=True):
            said = start + critique.rstrip("\n") + "\n"
            self._turns[n].append({"role": "assistant", "content": said})
            ids = self._ids(opening + said)
            verdicts = [place for place, token in enumerate(ids) if token in self._pair]
            boxed = said.rfind("\\boxed{")
            if boxed >= 0 and verdicts:
                rows.append(ids[: verdicts[-1]])
            else:
                rows.append(self._ids(opening + said + _VERDICT))
        return self._pair_odds(rows)


class ThinkPrm(GenerativeModel):
    """ThinkPRM: every prefix of the solution is verified by itself."""

    good, bad = " yes", " no"

    def _judge(self, live: list[int], asked: list[str], steps: list[list[str]], number: int) -> list[float]:
        openings = []
        for n in live:
            solution = "\n".join(numbered(steps[n][: number + 1]))
            task = _THINKPRM_TASK.replace("{problem}", asked[n]).replace("{solution}", solution)
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": task}], tokenize=False, add_generation_prompt=True
            )
            openings.append(text + _THINKPRM_OPENING)
        thoughts = self.write([self._ids(opening) for opening in openings], "")
        return self._pair_odds(
            [
                self._ids(opening + thought + _THINKPRM_QUESTION)
                for opening, thought in zip(openings, thoughts, strict=True)
            ]
        )


KINDS: dict[str, type[ProcessModel]] = {"genprm": GenPrm, "thinkprm": ThinkPrm}
"""By adapter name."""
