r"""Texts made to hang, crash, overflow or take over a verifier: name -> (response, reference, equal).

The kinds that stop other verifiers (towers of powers, nesting, long chains, huge matrices, unclosed marks, look-alike
digits, code) with the verdict where mathematics gives one; `None` where only a prompt and calm answer is asked for.
Used by tests/test_verifiers_hostile.py and benchmarks/verifiers_hostile.py.
"""

from __future__ import annotations

import random

from verifiers.trees import words


def nested_radicals(depth: int) -> str:
    r"""2 cos(pi / 2^(depth + 1)) as sqrt(2 + sqrt(2 + ... sqrt(2)))."""
    text = r"\sqrt{2}"
    for _ in range(depth - 1):
        text = rf"\sqrt{{2+{text}}}"
    return text


def series(terms: int) -> str:
    """A geometric series written out, which is 0 with its last term."""
    return "+".join(rf"\frac{{1}}{{2^{{{n}}}}}" for n in range(1, terms)) + rf"+\frac{{1}}{{2^{{{terms - 1}}}}}-1"


def matrix(size: int, entry: str = "1") -> str:
    """A square matrix of equal entries."""
    return r"\begin{pmatrix}" + r"\\".join("&".join([entry] * size) for _ in range(size)) + r"\end{pmatrix}"


HOSTILE: dict[str, tuple[str, str, bool | None]] = {
    # powers, factorials, binomials
    "tower of nines": ("9^{9^{9^{9}}}", "9^{9^{9^{9}}}", True),
    "tower, plain": ("9^9^9^9", "1", False),
    "towers that differ on top": ("9^{9^9}", "9^{9^8}", False),
    "power of a power of ten": ("10^{10^{10}}", "10^{10^{10}}", True),
    "powers of ten that differ": ("10^{10^{10}}", "10^{10^{9}}", False),
    "power, python style": ("10**10**10", "1", False),
    "two to ten thousand million": ("2^{10000000000}", "1", False),
    "factorial of ten million": ("10000000!", "1", False),
    "nested factorials": ("(((4!)!)!)!", "1", False),
    "huge binomial": (r"\binom{10^8}{5*10^7}", "1", None),
    "gamma": (r"\Gamma(10^8)", "1", None),
    "tower in the exponent of two": ("2^{" * 150 + "2" + "}" * 150, "3", None),
    "long chain of exponents": ("1^" * 9_000 + "1", "1", None),
    "many big factors": ("*".join(["9^{9999}"] * 200), "1", None),
    "vanishing power": ("10^{-999999999}", "0", False),
    "factorials in a quotient": (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
    "tower of e": ("e^{e^{e^{e^{e}}}}", "1", False),
    "sine of a tower": (r"\sin(10^{10^{8}})", "1", None),
    # nesting
    "a thousand braces": ("{" * 1_000 + "1" + "}" * 1_000, "1", True),
    "nine thousand braces": ("{" * 9_000 + "1" + "}" * 9_000, "1", True),
    "a thousand brackets": ("(" * 1_000 + "1" + ")" * 1_000, "1", True),
    "nine thousand brackets": ("(" * 9_000 + "1" + ")" * 9_000, "1", True),
    "brackets without end": ("(" * 9_000 + "1", "1", None),
    "a thousand fractions": (r"\frac{1}{" * 1_000 + "1" + "}" * 1_000, "1", None),
    "fractions past the length": (r"\frac{1}{" * 10_000 + "1" + "}" * 10_000, "1", None),
    "two thousand roots": (r"\sqrt{" * 2_000 + "1" + "}" * 2_000, "1", None),
    "sets in sets": (r"\{" * 3_000 + "1" + r"\}" * 3_000, "1", None),
    "tuples in tuples": ("((1,2)," * 1_000 + "1" + ")" * 1_000, "1", None),
    "commands without arguments": (r"\frac" * 4_000, "1", None),
    "texts in texts": (r"\text{" * 3_000 + "a", "1", None),
    "bars": ("|" * 10_000 + "1", "1", None),
    "nested radicals": ("2" + r"\cos(\pi/1024)", nested_radicals(9), True),
    "nested radicals that differ": ("2" + r"\cos(\pi/1025)", nested_radicals(9), False),
    "cubic radicals": (r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", "1", True),
    # large expressions
    "power of a sum": ("(x+y+z+w)^{200}", "(x+y+z+w)^{200}+1", False),
    "six terms to the thousandth": ("(a+b+c+d+e+f)^{1000}", "1", False),
    "power of a power of a sum": ("((x+1)^{50}+1)^{50}", "x", False),
    "huge exponent of a symbol": ("x^{10^{100}}", "x^{10^{100}}+1", False),
    "sum to a thousand million": (r"\sum_{k=1}^{10^9}\frac{1}{k^2}", "1", None),
    "product to a million": (r"\prod_{k=1}^{10^6}k", "1", None),
    "nested integral": (r"\int_0^1\int_0^1\int_0^1 e^{xyz}dxdydz", "1", None),
    "geometric series": (series(800), "0", True),
    "a thousand roots": ("+".join(rf"\sqrt{{{n}}}" for n in range(2, 1_000)), "1", None),
    "a thousand fractions in a sum": ("+".join(rf"\frac{{1}}{{{n}}}" for n in range(2, 1_000)), "1", None),
    "huge fraction": (r"\frac{" + "9" * 9_000 + "}{" + "7" * 9_000 + "}", "1", None),
    # digits
    "hundred thousand equal digits": ("1" * 100_000, "1" * 100_000, True),
    "hundred thousand digits": ("1" * 100_000, "1", None),
    "a million digits": ("7" * 1_000_000, "7" * 1_000_000, True),
    "nine thousand threes": ("0." + "3" * 9_000, r"\frac13", None),
    "hundred thousand threes": ("0." + "3" * 100_000, r"\frac13", None),
    "exponent of a decimal": ("1e999999999", "1", None),
    "expanded exponent": ("1e3999", "1", False),
    "minus signs": ("-" * 100_000 + "1", "1", None),
    "slashes": ("1/" * 50_000 + "1", "1", None),
    # lists
    "chain of equations": ("=".join(["1"] * 20_000), "1", None),
    "chain within the limit": ("=".join(["1"] * 2_000), "1", True),
    "twenty thousand commas": ("1," * 20_000 + "1", "1", None),
    "shuffled set": (",".join(map(str, range(1_500))), ",".join(map(str, reversed(range(1_500)))), True),
    "sets that differ by one": (",".join(map(str, range(900))), ",".join(map(str, range(1, 901))), False),
    "sets of roots": (
        ",".join(rf"\sqrt{{{n}}}" for n in range(2, 60)),
        ",".join(rf"\sqrt{{{4 * n}}}/2" for n in reversed(range(2, 60))),
        None,
    ),
    "plus-minus signs": (r"\pm" * 100 + "1", "1", None),
    "a list of plus-minus": (",".join([r"1\pm2"] * 500), "1", None),
    "matrix of forty thousand": (matrix(200), matrix(200), True),
    "matrix against a number": (matrix(60), "1", False),
    "matrices that differ": (matrix(30), matrix(30, "2"), False),
    "matrix product": (matrix(12) * 6, matrix(12), None),
    # marks around answers
    "unclosed boxes": (r"\boxed{" * 50_000, "1", None),
    "boxes": (r"\boxed{1}" * 50_000, "1", True),
    "boxes joined": (r"\boxed{1} and " * 20_000, "1", False),
    "dollars": ("$" * 100_000, "1", None),
    "escaped dollars": (r"\$" * 50_000, "1", None),
    "phrases": ("the answer is " * 20_000, "1", None),
    "phrases that say nothing": ("A: \n" * 50_000, "1", None),
    "hashes": ("####" * 50_000, "1", None),
    "choices": ("\n(A" * 50_000, "B", None),
    "thoughts": ("<think>" * 50_000 + "1", "1", None),
    "bold": ("**" * 50_000 + "1", "1", None),
    "stripped mathematics": ("(\\a" * 30_000, "1", None),
    # prose and spaces
    "a million spaces": (" " * 1_000_000, "1", None),
    "a million letters": ("word " * 200_000, "1", None),
    "apostrophes": ("it's " * 50_000, "1", None),
    "numbers without end": ("12 " * 30_000, "1", None),
    "a phrase and spaces": ("the answer is so" + " " * 200_000 + "x", "1", None),
    "characters of no spaces": ("答案" * 50_000, "1", None),
    # characters
    "full-width digits": ("\uff14\uff12", "42", True),
    "arabic digits": ("٤٢", "42", True),
    "superscript": ("x²", "x^2", True),
    "zero byte": ("4\x002", "42", True),
    "zero width": ("4\u200b2", "42", True),
    "lone surrogate": ("4\ud8002", "42", None),
    "right to left": ("\u202e42", "42", None),
    # values that are none
    "nan": ("nan", "nan", None),
    "zero by zero": ("0/0", "0/0", None),
    "zero by zero against one": (r"\frac{0}{0}", "1", False),
    # code
    "import": ("__import__('os').system('touch /tmp/rewardkit-was-here')", "1", False),
    "subclasses": ("().__class__.__base__.__subclasses__()", "1", False),
    "comprehension": ("[x for x in open('/etc/passwd')]", "1", False),
    "chr": ("chr(95)+chr(95)", "1", False),
    "lambda": ("(lambda: exit())()", "1", False),
    "sympy function on text": ("simplify('__import__(\"os\").getcwd()')", "1", False),
    "latex command": (r"\input{/etc/passwd}\write18{id}", "1", False),
    "list literal against a matrix": ("[[1,2],[3,__import__('os')]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", False),
}


_MARKS = r"""
1 42 0.5 -3 x y e i B (C) 1,234 1.234,5 $1,000 1e9 9^9^9 10^{100} 0.\overline{3} twenty half ** { } ( ) [ ] \{ \} ^
_ ^{ _{ + - * / , ; : = < > | ! % ' " \ \\ & $ $$ \( \) \pi \frac{1}{2} \frac \sqrt \sqrt[3] \le \in \cup \pm
\setminus \mathbb{R} ^\circ \left( \right) \boxed{ \text{ \begin{pmatrix} \end{pmatrix} \sum_{k=1}^{ \int_0^1 dx \binom
\sin \log_2 \ln \pmod{7} \ldots ... <think> </think>
"""
_SPACED = [" and ", " or ", " cm", " miles per hour", "answer is ", "A: ", "#### ", "\n", "mod 5", "\x00", "\u200b"]
PIECES = [*words(_MARKS), *_SPACED, *"\u221e\u00bd\u00b2\u221a\u2212\u0663"]


def fuzz_text(draw: random.Random) -> str:
    """A text of random pieces; now and then one that is long or repeats itself."""
    text = "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 14)))
    return text * draw.randrange(2, 400) if draw.random() < 0.05 else text
