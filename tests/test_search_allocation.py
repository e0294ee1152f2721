"""A budget over all problems: spent to the last response, where the vote is open, on Best-of-N's own responses."""

from __future__ import annotations

import pytest
from search_scripts import SAMPLING, problems

from search.allocation import Allocation, allocate
from search.engines.scripted_engine import ScriptedEngine
from search.strategies.adaptive_vote import overtaken
from search.strategies.best_of_n import draw
from verifiers.errors import ConfigError

OPEN = [f"Step A+ \\boxed{{{n}}}" for n in (1, 1, 1, 2, 2, 3)]
CLEAR = ["Step A+ \\boxed{7}"]


def test_open_votes_get_what_clear_ones_leave() -> None:
    asked = problems(20)
    own = ScriptedEngine({str(p.prompt): OPEN if n % 2 else CLEAR for n, p in enumerate(asked)})
    found = allocate(asked, Allocation(total=160, most=16, first=2, width=5), engine=own, sampling=SAMPLING, seed=4)
    counts = [len(one.responses) for one in found]
    assert sum(counts) == 160
    pools = draw(asked, engine=own, n=16, sampling=SAMPLING, seed=4)
    for one, pool in zip(found, pools, strict=True):
        assert [r.text for r in one.responses] == [r.text for r in pool.responses[: len(one.responses)]]
        assert one.unsettled == overtaken(one.classes, rest=16 - len(one.responses))
        assert one.chosen is not None
    clear, opened = counts[::2], counts[1::2]
    assert sum(opened) > 1.5 * sum(clear)
    # A unanimous problem is one of the clear ones as far as anyone can tell, and got no more than they did.
    assert all(len(one.responses) <= max(clear) for one in found[1::2] if len(set(one.classes)) == 1)
    # With responses to spare, everything is settled or full.
    rich = allocate(asked, Allocation(total=1000, most=16), engine=own, sampling=SAMPLING, seed=4)
    assert all(one.unsettled == 0 or len(one.responses) == 16 for one in rich)
    full = [max(set(c), key=c.count) for c in ([r.text for r in pool.responses] for pool in pools)]
    for one, text in zip(rich[::2], full[::2], strict=True):
        assert one.chosen is not None
        assert one.responses[one.chosen].text == text


def test_settings() -> None:
    own = ScriptedEngine({str(p.prompt): CLEAR for p in problems(3)})
    with pytest.raises(ConfigError, match="give each of 3 problems 2 responses; got 5"):
        allocate(problems(3), Allocation(total=5), engine=own)
    for name, value in (("total", 0), ("most", 0), ("first", 40), ("prior", 0)):
        with pytest.raises(ConfigError, match=rf"Allocation.{name} must be .*; got {value}"):
            Allocation(**({"total": 9} | {name: value}))  # type: ignore[arg-type]
