r"""Steps and their token spans: exact offsets, spans that tile, one tokenisation.

The tiny tokenizer writes one character a byte in its vocabulary, so that the number of bytes of a token is known
and the right offsets follow from UTF-8 alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search.engines.scripted_engine import ByteTokenizer
from verifiers.core import Response, StopReason
from verifiers.errors import ConfigError, ModelError
from verifiers.steps import (
    encode_prompt,
    response_ids,
    separator_ids,
    split_steps,
    text_response,
    token_offsets,
    token_steps,
)

WORDS = ["One apple", " and", "\n\n", "\n", " ", "1", "+", "é", "€", "😀", "\t", " ### ", "x", "\r\n", "\u2003", "ß= "]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=60).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd<"), max_size=40
)


class WordTokenizer:
    """Whatever tokens a test wants; `glued` decodes like SentencePiece, which drops a leading space."""

    eos_token_id: int | None = 0
    chat_template: str | None = None

    def __init__(self, *words: str, glued: bool = False) -> None:
        self.words, self.glued = ("", *words), glued

    def __call__(self, text: str, **options: Any) -> Any:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        text = "".join(self.words[token] for token in token_ids)
        return text.removeprefix(" ") if self.glued else text

    @property
    def ids(self) -> list[int]:
        return list(range(1, len(self.words)))


def said(text: str, *, stop: StopReason = StopReason.STOP) -> Response:
    return Response(problem_id="p", text=text, stop_reason=stop)


def spans(tokenizer: Any, ids: Sequence[int], separator: str = "\n\n") -> list[tuple[str, int, int]]:
    steps = token_steps(tokenizer, said("?"), ids, separator=separator)
    return [(step.text, step.token_start, step.token_end) for step in steps]


def test_steps_of_the_picture() -> None:
    text = "First: 2 + 3 = 5.  \n\n  Then: 5 * 4 = 20. \\boxed{20}"
    first, second = split_steps(text)
    assert (first.text, first.start, first.end) == ("First: 2 + 3 = 5.", 0, 17)
    assert (second.text, second.start, second.end) == ("Then: 5 * 4 = 20. \\boxed{20}", 23, 51)
    assert (first.token_start, first.token_end) == (-1, -1)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        (" \n\n\t\n ", []),
        ("a", ["a"]),
        ("a\nb", ["a\nb"]),
        ("a\n\nb", ["a", "b"]),
        ("a \n \t\n\n\r\n b", ["a", "b"]),
        ("\n\na\n\n\n\nb\n\n", ["a", "b"]),
        ("a\r\n\r\nb", ["a", "b"]),
    ],
)
def test_blank_lines_separate(text: str, steps: list[str]) -> None:
    assert [step.text for step in split_steps(text)] == steps


def test_other_separators_are_taken_literally() -> None:
    assert [s.text for s in split_steps("a.b.*c.\n\nd", separator=".")] == ["a", "b", "*c", "d"]
    assert [s.text for s in split_steps("a ки\n b ки\nки\n c", separator="ки\n")] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="separator must be a non-empty string"):
        split_steps("a", separator="")


@given(TEXTS, st.sampled_from(["\n\n", "\n", "###", " "]))
def test_steps_are_the_visible_text_in_order(text: str, separator: str) -> None:
    steps = split_steps(text, separator=separator)
    position = 0
    for step in steps:
        assert text[step.start : step.end] == step.text == step.text.strip() != ""
        between = text[position : step.start]
        assert between.replace(separator, "").strip() == ""
        assert separator != "\n\n" or position == 0 or between.count("\n") >= 2
        position = step.end
    assert text[position:].replace(separator, "").strip() == ""
    if separator == "\n\n":
        assert all(len(split_steps(step.text)) == 1 for step in steps)


def test_white_space_without_end_costs_linear_time() -> None:
    started = time.process_time()
    for run in (" " * 50_000, "\n" + " " * 50_000, " " * 25_000 + "\n" + "\t" * 25_000):
        assert len(split_steps(f"a{run}b")) == 1
    assert len(split_steps("a" + " \n" * 25_000 + "b")) == 2
    assert time.process_time() - started < 2


def true_ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """Characters that are complete after each token, counted in bytes."""
    if isinstance(tokenizer, ByteTokenizer):
        sizes = [1] * len(ids)
    else:
        sizes = [len(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    data = text.encode()
    assert sum(sizes) == len(data)
    return [len(data[:end].decode(errors="ignore")) for end in accumulate(sizes)]


@given(text=TEXTS)
@example(text="😀" * 40)
@example(text="a" * 31 + "€" * 20 + "\n\n" + "é" * 33)
def test_offsets_are_exact_where_characters_are_cut(tiny_tokenizer: Any, text: str) -> None:
    ids = tiny_tokenizer(text)["input_ids"]
    assert token_offsets(tiny_tokenizer, ids, text) == true_ends(tiny_tokenizer, ids, text)
    tokenizer, data = ByteTokenizer(), list(text.encode())
    assert token_offsets(tokenizer, data, text) == true_ends(tokenizer, data, text)


def test_offsets_of_a_decoder_that_drops_the_first_space() -> None:
    tokenizer = WordTokenizer(*[" word", " by", " word", "\n\n", " 12"] * 20, glued=True)
    text = tokenizer.decode(tokenizer.ids)
    ends = token_offsets(tokenizer, tokenizer.ids, text)
    whole = list(accumulate(len(word) for word in tokenizer.words[1:]))
    assert ends == [end - 1 for end in whole]
    assert ends[-1] == len(text)


@given(text=TEXTS, separator=st.sampled_from(["\n\n", "\n", "###"]))
@example(text="One apple\n\n and 1\n\n\n é\n\n😀", separator="\n\n")
def test_spans_tile_the_ids_and_decode_to_their_steps(tiny_tokenizer: Any, text: str, separator: str) -> None:
    ids = [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]
    steps = token_steps(tiny_tokenizer, said(text), ids, separator=separator)
    plain = split_steps(text, separator=separator)
    assert [(s.text, s.start, s.end) for s in steps] == [(s.text, s.start, s.end) for s in plain]
    if not steps:
        return
    assert steps[0].token_start == 0
    assert steps[-1].token_end == len(ids) - 1  # the end of sequence is no step's
    assert all(a.token_end == b.token_start for a, b in pairwise(steps))
    if separator != "###":  # its characters may share a token with the text beside them
        for step in steps:
            piece = tiny_tokenizer.decode(ids[step.token_start : step.token_end])
            assert piece.strip() == step.text
            assert step is steps[-1] or piece.endswith("\n") or piece.rstrip(" \t\u2003").endswith("\n")


def test_separators_close_and_leading_spaces_open() -> None:
    tokenizer = WordTokenizer("One", ".", "\n\n", " Then", " two", ".", "\n", "\n", "So")
    assert spans(tokenizer, tokenizer.ids) == [("One.", 0, 3), ("Then two.", 3, 8), ("So", 8, 9)]
    # " Then" is the next step's first token whether the response was drawn in one piece or step by step
    indented = WordTokenizer("a", "\n\n", "  ", "b")
    assert spans(indented, indented.ids) == [("a", 0, 2), ("b", 2, 4)]
    lines = WordTokenizer("a", "\n", " b", "\n", "c")
    assert spans(lines, lines.ids, "\n") == [("a", 0, 2), ("b", 2, 4), ("c", 4, 5)]


def test_a_token_over_the_border_belongs_where_it_begins() -> None:
    tokenizer = WordTokenizer("a", ".\n\nb", "c")
    assert spans(tokenizer, tokenizer.ids) == [("a.", 0, 2), ("bc", 2, 3)]
    early = WordTokenizer("\n\n", "a", "\n\n")
    assert spans(early, early.ids) == [("a", 0, 3)]


def test_end_of_sequence_belongs_to_no_step() -> None:
    tokenizer = WordTokenizer("a", "\n\n", "b")
    assert spans(tokenizer, [1, 2, 3, 0]) == spans(tokenizer, [1, 2, 3]) == [("a", 0, 2), ("b", 2, 3)]
    assert spans(tokenizer, [0]) == spans(tokenizer, []) == spans(tokenizer, [2]) == []


def test_a_response_has_its_sampled_ids_or_is_encoded_once(tiny_tokenizer: Any) -> None:
    eos = tiny_tokenizer.eos_token_id
    sampled = Response(problem_id="p", text="One", token_ids=(5, 6, 7))
    assert response_ids(tiny_tokenizer, sampled) == (5, 6, 7)
    plain = tuple(tiny_tokenizer("One apple")["input_ids"])
    assert response_ids(tiny_tokenizer, said("One apple")) == (*plain, eos)
    assert response_ids(tiny_tokenizer, said("One apple", stop=StopReason.LENGTH)) == plain
    assert response_ids(tiny_tokenizer, said("")) == (eos,)
    assert response_ids(ByteTokenizer(), said("é")) == (0xC3, 0xA9, 256)


def test_the_separator_is_one_token_here(tiny_tokenizer: Any) -> None:
    (blank,) = separator_ids(tiny_tokenizer)
    assert tiny_tokenizer.decode([blank]) == "\n\n"
    assert separator_ids(ByteTokenizer(), separator="é\n") == (0xC3, 0xA9, 10)


def test_prompts_are_text_or_go_through_the_chat_template(tiny_tokenizer: Any) -> None:
    assert encode_prompt(tiny_tokenizer, "One apple") == tuple(tiny_tokenizer("One apple")["input_ids"])
    messages = ({"role": "system", "content": "Then"}, {"role": "user", "content": "1 + 2"})
    with pytest.raises(ModelError, match="this tokenizer has no chat template; give the prompt as plain text"):
        encode_prompt(tiny_tokenizer, messages)
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}so:{% endif %}"
    )
    assert encode_prompt(chat, messages) == tuple(tiny_tokenizer("system: Then\nuser: 1 + 2\nso:")["input_ids"])


def test_texts_become_one_response() -> None:
    made = text_response("p", ["a", "b\nc"], sample=3)
    assert made == Response(problem_id="p", text="a\n\nb\nc", sample=3)
    assert [s.text for s in split_steps(made.text)] == ["a", "b\nc"]
    for bad in ("", "  ", "b\n\nc"):
        with pytest.raises(ConfigError, match=r"step 1 of problem 'p' must be one step"):
            text_response("p", ["a", bad])


@given(st.lists(st.text("ab \t\né", min_size=1), max_size=5))
def test_texts_that_are_accepted_come_back(texts: list[str]) -> None:
    try:
        made = text_response("p", texts)
    except ConfigError:
        assert any(len(split_steps(text)) != 1 for text in texts)
    else:
        assert [s.text for s in split_steps(made.text)] == [text.strip() for text in texts]
