"""Format rules: every way a layout can be wrong is refused and named; the right one passes."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.core import Outcome, Problem, Response, Scorer, Verdict
from verifiers.errors import ConfigError
from verifiers.layout import OneBox, ScriptShare, Sections, Tags, braced, script_of


def judge(scorer: Scorer, text: str) -> Verdict:
    (verdict,) = scorer.judge([Problem(id="p", prompt="?")], [Response(problem_id="p", text=text)])
    return verdict


RIGHT = "<think>a</think> so <answer>b</answer>"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (RIGHT, "tags"),
        ("x" + RIGHT + "y", "tags"),
        ("<think>a</think><think>a</think><answer>b</answer>", "tags:duplicated"),
        ("<think>a</think><answer>b</answer></answer>", "tags:duplicated"),
        ("<think>a<think></think><answer>b</answer>", "tags:duplicated"),
        ("<think>a<answer>b</answer>", "tags:missing"),
        ("<think>a</think><answer>b", "tags:missing"),
        ("a</think><answer>b</answer>", "tags:missing"),
        ("<think>a<answer>b</answer></think>", "tags:nested"),
        ("<think>a<answer>b</think></answer>", "tags:nested"),
        ("<answer>b</answer><think>a</think>", "tags:reordered"),
        ("</think>a<think><answer>b</answer>", "tags:reordered"),
        ("<think>a</think></answer>b<answer>", "tags:reordered"),
        ("<think> \n</think><answer>b</answer>", "tags:empty"),
        ("<think>a</think><answer></answer>", "tags:empty"),
        ("<Think>a</Think><answer>b</answer>", "tags:missing"),
        ("", "tags:missing"),
    ],
)
def test_tags(text: str, kind: str) -> None:
    verdict = judge(Tags(), text)
    assert (verdict.kind, verdict.score) == (kind, 1.0 if kind == "tags" else 0.0)


@given(order=st.permutations(["<think>", "</think>", "<answer>", "</answer>"]))
def test_of_all_24_orders_one_is_right(order: list[str]) -> None:
    right = order == ["<think>", "</think>", "<answer>", "</answer>"]
    assert judge(Tags(), "x".join(order)).score == float(right)


def test_one_order_of_24_passes_exactly() -> None:
    orders = itertools.permutations(["<think>", "</think>", "<answer>", "</answer>"])
    scores = [judge(Tags(), "x".join(order)).score for order in orders]
    assert (len(scores), sum(scores)) == (24, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outside", "text", "score"),
    [
        ("anywhere", "x<a>1</a>y<b>2</b>z", 1.0),
        ("after", "x<a>1</a><b>2</b>", 0.0),
        ("after", "<a>1</a>y<b>2</b>", 0.0),
        ("after", " <a>1</a>\n<b>2</b> z", 1.0),
        ("nowhere", " <a>1</a>\n<b>2</b> z", 0.0),
        ("nowhere", " <a>1</a>\n<b>2</b>\n", 1.0),
    ],
)
def test_text_outside_the_tags(outside: str, text: str, score: float) -> None:
    verdict = judge(Tags(names=("a", "b"), outside=outside), text)  # type: ignore[arg-type]
    assert verdict.score == score
    assert verdict.kind == ("tags" if score else "tags:outside")


def test_a_template_that_opens_the_first_tag() -> None:
    scorer = Tags(names=("think",), opened_by_prompt=True)
    assert judge(scorer, "a</think>5").score == 1.0
    assert judge(scorer, "<think>a</think>5").kind == "tags:duplicated"
    assert judge(scorer, "</think>5").kind == "tags:empty"


@pytest.mark.parametrize(
    ("text", "kind", "extracted"),
    [
        (r"so \boxed{\frac{1}{2}}.", "box", r"\frac{1}{2}"),
        (r"\boxed {5}", "box", "5"),
        (r"\boxed{\{1, 2\}}", "box", r"\{1, 2\}"),
        (r"\boxed{1} and \boxed{1}", "box:duplicated", None),
        (r"\boxed{\boxed{1}}", "box:duplicated", None),
        ("5", "box:missing", None),
        (r"\boxedx{5}", "box:missing", None),
        (r"\boxed 5", "box:open", None),
        (r"\boxed{5", "box:open", None),
        (r"\boxed{ }", "box:empty", None),
    ],
)
def test_one_box(text: str, kind: str, extracted: str | None) -> None:
    verdict = judge(OneBox(), text)
    assert (verdict.kind, verdict.extracted, verdict.score) == (kind, extracted, float(kind == "box"))


def test_a_box_after_a_mark() -> None:
    scorer = OneBox(after="</think>")
    assert judge(scorer, r"\boxed{1}</think>\boxed{2}").extracted == "2"
    assert judge(scorer, r"\boxed{1}").kind == "box:mark"
    assert judge(scorer, r"\boxed{1}</think>").kind == "box:missing"


@given(st.text(alphabet="{}\\a", max_size=12))
def test_braces_balance(text: str) -> None:
    """What is found reads back: the content, in braces, is again one balanced group."""
    content = braced("{" + text, 0)
    if content is not None:
        assert ("{" + text).startswith("{" + content + "}")
        assert braced("{" + content + "}", 0) == content


def test_fifty_thousand_boxes_are_scanned_once() -> None:
    assert judge(OneBox(), r"\boxed{" * 50_000).reason == r"\boxed occurs 50000 times, not once"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("## Plan\na\n## Work \nb", "sections"),
        ("intro\n ## Plan\n\na\n\n## Work\nb\n", "sections"),
        ("## Plan\na\n## Plan\na\n## Work\nb", "sections:duplicated"),
        ("## Plan and more\na\n## Work\nb", "sections:missing"),
        ("## Work\nb\n## Plan\na", "sections:reordered"),
        ("## Plan\n\n## Work\nb", "sections:empty"),
        ("## Plan\na\n## Work\n ", "sections:empty"),
    ],
)
def test_sections(text: str, kind: str) -> None:
    verdict = judge(Sections(headings=("## Plan", "## Work")), text)
    assert (verdict.kind, verdict.score) == (kind, float(kind == "sections"))


@pytest.mark.parametrize(
    ("language", "text", "share"),
    [
        ("en", "ab вг", 0.5),  # two Latin letters of four
        ("ru", "abc д", 0.25),
        ("en", "abc 123 !?", 1.0),  # digits and signs are no letters
        ("zh", "你好ab", 0.5),
        ("ja", "かカ漢ー", 1.0),  # the length mark is a modifier letter and not counted
        ("ko", "한국어 ok", 0.6),  # three of five
        ("en", r"so $\alpha$ is \(абв\) and \[д\] d \text{e} \\ f", 1.0),
        ("en", "\uff46\uff55\uff4c\uff4c ж", 0.8),  # full-width Latin: four of five
        ("en", r"a $x$ \$5 бв $y$", 1 / 3),  # an escaped dollar opens nothing: a, and two that are not
        ("en", r"a $x \$ д$ b", 1.0),  # and closes nothing
        ("en", "a $ бвд", 0.25),  # nor does a stray one hide what follows
        ("en", "a $ бв\n\nд $", 0.25),  # not even to the next paragraph
        ("en", r"a \( бвд", 0.25),
        ("en", r"a $$ \frac{д}{в} $$ \quad b", 1.0),
        ("en", "\U0001d431 a", 1.0),  # a mathematical bold x belongs to no script
    ],
)
def test_script_share(language: str, text: str, share: float) -> None:
    verdict = judge(ScriptShare(language=language), text)
    assert (verdict.score, verdict.outcome) == (share, Outcome.GRADED)


@pytest.mark.parametrize("text", ["$" * 200_001, "\\(" * 100_000, "$a\n\n" * 50_000, "\\$" * 100_000, "$ \\$" * 50_000])
def test_marks_without_end_cost_one_pass(text: str) -> None:
    start = time.process_time()
    judge(ScriptShare(language="en"), text)
    assert time.process_time() - start < 5.0  # a pass for every mark would take minutes


def test_script_share_as_yes_or_no_and_without_letters() -> None:
    assert judge(ScriptShare(language="en", at_least=0.5), "ab вг").outcome is Outcome.CORRECT
    assert judge(ScriptShare(language="en", at_least=0.6), "ab вг").outcome is Outcome.INCORRECT
    verdict = judge(ScriptShare(language="en"), "12 + 3 = $x$")
    assert (verdict.outcome, verdict.kind) == (Outcome.UNDECIDED, "no_letters")
    assert judge(ScriptShare(scripts=("GREEK",), skip_math=False), "$αb$").score == 0.5


@settings(max_examples=200)
@given(st.characters())
def test_every_character_has_a_script_or_none(char: str) -> None:
    assert script_of(char) == script_of(char).upper()
    if not char.isalpha():
        assert script_of(char) == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tags(names=()), "Tags.names must be one or more different names; got ()"),
        (
            lambda: Tags(names=("<think>",)),
            "Tags.names are written without brackets, as in 'think'; got '<think>'",
        ),
        (lambda: OneBox(command=r"\boxed"), r"OneBox.command is letters only, as in 'boxed'; got '\\boxed'"),
        (
            lambda: Sections(headings=("a", "a ")),
            "Sections.headings must be different lines that are not empty; got ['a', 'a']",
        ),
        (lambda: ScriptShare(), "ScriptShare needs either a language or scripts, and not both"),
        (
            lambda: ScriptShare(scripts=("Latin",)),
            "ScriptShare.scripts are upper case, as in 'LATIN'; got ('Latin',)",
        ),
        (
            lambda: ScriptShare(language="en", at_least=0.0),
            "ScriptShare.at_least must be in (0, 1] or None; got 0.0",
        ),
    ],
)
def test_impossible_rules_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message
