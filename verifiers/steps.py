r"""A response as steps, and the one tokenisation that every part shares.

Text is encoded exactly once: prompt ids, then response ids (the sampled ids where they are known, else the
response text encoded in one go). Steps are spans over that sequence and are never encoded again or glued
together. A step ends at its separator (a blank line by default); the separator's tokens close the step they
follow, so spans tile the response. The closing token of the last step is the token before the end-of-sequence
token, which belongs to no step.

    characters   First: 2 + 3 = 5.  \n\n  Then: 5 * 4 = 20. \boxed{20}
    steps        [0 ............]           [1 ......................]
    token spans  [0 ..................... ) [1 .....................)  <eos>
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Sequence
from typing import Any

from verifiers.core import Prompt, Response, Step, StopReason, Tokenizer
from verifiers.errors import ConfigError, DataError, ModelError

BLANK_LINE = "\n\n"


def split_steps(text: str, *, separator: str = BLANK_LINE) -> list[Step]:
    """Steps of a text by a separator, with character offsets; empty pieces are no steps.

    For the default separator any run of white space that holds at least two line breaks separates. A text
    without visible characters has no steps.
    """
    if not separator:
        raise ConfigError("separator must be a non-empty string; got ''")
    # (?<!\s): a run of white space is tried once, from its start, which keeps the search linear.
    pattern = r"(?<!\s)\s*\n\s*\n\s*" if separator == BLANK_LINE else re.escape(separator)
    steps = []
    start = 0
    for match in [*re.finditer(pattern, text), None]:
        end = match.start() if match else len(text)
        piece = text[start:end]
        if piece.strip():
            left = start + len(piece) - len(piece.lstrip())
            right = end - (len(piece) - len(piece.rstrip()))
            steps.append(Step(text=text[left:right], start=left, end=right))
        start = match.end() if match else len(text)
    return steps


_TOKEN_TEXTS: weakref.WeakKeyDictionary[Tokenizer, dict[int, str]] = weakref.WeakKeyDictionary()


def token_offsets(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """Where each token's text ends, in characters of `text`, the decoded ids: shape (T,).

    Where the tokens' own texts add up to the whole, their lengths say it (cached, a dictionary look-up a
    token). Else (characters split over tokens, decoders that treat the start of a text specially) the ends
    are read off growing windows of the decoded sequence.
    """
    known = _TOKEN_TEXTS.setdefault(tokenizer, {})
    for token in token_ids:
        if token not in known:
            known[token] = _decode(tokenizer, [token])
    ends = list(itertools.accumulate(len(known[token]) for token in token_ids))
    if "".join(known[token] for token in token_ids) == text:
        return ends
    ends, done, window = [], 0, []
    for token in token_ids:
        window.append(token)
        piece = _decode(tokenizer, window)
        ends.append(done + len(piece) - piece.endswith("\ufffd"))
        # A window is closed behind a whole character; its last token stays as context for the next one.
        if len(window) >= 32 and not piece.endswith("\ufffd"):
            done += len(piece) - len(_decode(tokenizer, [token]))
            window = [token]
    return ends


def _decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # What the wrapper would call, without its conversion of every id: a search decodes all the time.
        text: str = backend.decode(token_ids, skip_special_tokens=True)
        return text
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def token_steps(
    tokenizer: Tokenizer, response: Response, token_ids: Sequence[int], *, separator: str = BLANK_LINE
) -> list[Step]:
    """The steps of a response with their token spans over `token_ids` (from `response_ids`).

    A token belongs to the step in which it begins; separator tokens close the step before them, and white
    space behind a separator opens the next one (" Then" is one token of the step it names). Spans tile [0, T)
    without the end-of-sequence token.
    """
    return text_and_steps(tokenizer, token_ids, separator=separator)[1]


def text_and_steps(
    tokenizer: Tokenizer, token_ids: Sequence[int], *, separator: str = BLANK_LINE
) -> tuple[str, list[Step]]:
    """The decoded text of a response without its end mark, and its steps over that text (see `token_steps`)."""
    ids = list(without_end(tokenizer, token_ids))
    text = _decode(tokenizer, ids)
    steps = split_steps(text, separator=separator)
    ends = token_offsets(tokenizer, ids, text)
    starts = [0, *ends[:-1]]
    bounds = []
    token = 0
    for before, following in itertools.pairwise(steps):
        gap = text[before.end : following.start]
        mark = "\n" if separator == BLANK_LINE else separator
        opened = before.end + gap.rfind(mark) + len(mark)
        while token < len(ids) and starts[token] < opened:
            token += 1
        bounds.append(token)
    edges = [0, *bounds, len(ids)]
    return text, [
        Step(text=step.text, start=step.start, end=step.end, token_start=edges[n], token_end=edges[n + 1])
        for n, step in enumerate(steps)
    ]


def without_end(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Sequence[int]:
    """The ids without an end mark: the end-of-sequence token, or another special one (chat models have several)."""
    ends = {tokenizer.eos_token_id, *getattr(tokenizer, "all_special_ids", ())}
    return token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids


_PROMPTS: weakref.WeakKeyDictionary[Tokenizer, dict[str, tuple[int, ...]]] = weakref.WeakKeyDictionary()
_SEPARATORS: weakref.WeakKeyDictionary[Tokenizer, dict[str, tuple[int, ...]]] = weakref.WeakKeyDictionary()


def encode_prompt(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """Prompt ids. Messages go through the tokenizer's chat template, plain text is encoded as it is.

    Raises ModelError when messages meet a tokenizer without a chat template, DataError for half a character.
    """
    if isinstance(prompt, str):
        # A search asks for the same few prompts thousands of times.
        known = _PROMPTS.setdefault(tokenizer, {})
        if prompt not in known:
            if len(known) >= 4096:
                known.clear()
            known[prompt] = tuple(tokenizer(_whole(prompt))["input_ids"])
        return known[prompt]
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the prompt is a list of chat messages, but this tokenizer has no chat template; "
            "give the prompt as plain text or use a chat model"
        )
    ids = tokenizer.apply_chat_template(
        [{key: _whole(value) for key, value in message.items()} for message in prompt],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    return tuple(ids)


def _whole(text: Any) -> Any:
    """The text, if a tokenizer can read it. Raises DataError for a lone surrogate, which only an escape can spell."""
    try:
        if isinstance(text, str):
            text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the prompt {text!r:.60} holds half a character ({text[error.start]!r}, a lone surrogate), which no "
            "tokenizer reads; mend it"
        ) from error
    return text


def response_ids(tokenizer: Any, response: Response) -> tuple[int, ...]:
    """The ids of a response: the sampled ones where known, else its text encoded once.

    A finished text gets the end-of-sequence token that sampling would have drawn; a truncated one does not.
    """
    if response.token_ids:
        return response.token_ids
    ids = tuple(tokenizer(response.text, add_special_tokens=False)["input_ids"])
    if response.stop_reason is StopReason.STOP and tokenizer.eos_token_id is not None:
        ids = (*ids, tokenizer.eos_token_id)
    return ids


def separator_ids(tokenizer: Any, *, separator: str = BLANK_LINE) -> tuple[int, ...]:
    """The separator's own ids, which close the last step when a step scorer reads it."""
    known = _SEPARATORS.setdefault(tokenizer, {})
    if separator not in known:
        known[separator] = tuple(tokenizer(separator, add_special_tokens=False)["input_ids"])
    return known[separator]


def text_response(problem_id: str, steps: Sequence[str], *, separator: str = BLANK_LINE, sample: int = 0) -> Response:
    """A finished response from step texts, joined by the separator; refuses a step that holds one."""
    for number, step in enumerate(steps):
        if len(split_steps(step, separator=separator)) != 1:
            raise ConfigError(
                f"step {number} of problem {problem_id!r} must be one step: some text without the separator "
                f"{separator!r}; got {step!r}; split or drop it"
            )
    return Response(problem_id=problem_id, text=separator.join(steps), sample=sample)
