"""PPO-ptx: the gradient is the sum of both however rows are cut and shared out; it resumes; nothing else is touched."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_rewardkit_rl_loop import distance, loop, settings, weights
from two_processes import in_two

from rewardkit.rl.loop import Loop, StepReport
from rewardkit.rl.policy.ptx import text_rows
from verifiers.errors import ConfigError, DataError

TEXTS = ["One apple and two apples.", "Then three more: 1 + 2 = 3.", "So the answer is 3", "One", "two apples " * 9]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Rows of text, and one of prompt and completion."""
    rows: list[dict[str, Any]] = [{"text": one} for one in TEXTS]
    rows.append({"prompt": "One apple and two: ", "completion": "1 + 2 = 3"})
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_text(init: Path, text: Path, gamma: float = 0.5, **more: Any) -> Loop:
    preset = {"preset": "reinforce", "change": (f"ptx={gamma}",), "ptx_text": str(text), "ptx_rows": 4}
    return loop(settings(init, **(preset | more)))


def gradients(own: Loop, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What the first optimiser step would follow, neither clipped nor taken."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, most: torch.zeros(()))
    monkeypatch.setattr(own.updater.optimiser, "step", lambda: None)
    own.step()
    found = own.models.policy.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in found}


def nll_gradient(own: Loop, rows: list[Any]) -> dict[str, torch.Tensor]:
    """The gradient of the mean next-token loss on rows, by transformers' own forward, a row at a time."""
    model = own.models.policy
    model.zero_grad(set_to_none=True)
    tokens = sum(len(row.response) for row in rows)
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        (-logprobs[len(row.prompt) - 1 :].sum() / tokens).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_that_of_the_reward_plus_gamma_times_that_of_the_text(
    temperature: float, tiny_policy: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gamma = 0.7
    plain = gradients(loop(settings(tiny_policy, preset="reinforce", temperature=temperature)), monkeypatch)
    own = with_text(tiny_policy, text, gamma, temperature=temperature)
    assert own.ptx is not None
    both = gradients(own, monkeypatch)
    own.ptx.order.position = 0
    of_text = nll_gradient(own, own.ptx.order.take(4))
    scale = max(value.abs().max().item() for value in both.values())
    assert scale > 1e-2
    for name, value in both.items():
        assert (value - plain[name] - gamma * of_text[name]).abs().max().item() < 1e-6 * scale, name
    assert max(value.abs().max().item() for value in of_text.values()) > 1e-2


def test_micro_batches_and_processes_change_no_gradient(tiny_policy: Path, text: Path) -> None:
    def gradient(ranks: int, **more: Any) -> dict[str, torch.Tensor]:
        own = with_text(tiny_policy, text, ptx_rows=9, **more)
        assert own.ptx is not None
        losses = []
        for rank in range(ranks):
            own.ptx.order.position = 0
            process: Any = SimpleNamespace(process_index=rank, num_processes=ranks, autocast=own.accelerator.autocast)
            losses.append(own.ptx.backward(process))
            assert own.ptx.order.position == 9  # every process moves on by all rows of the step
        own_loss = sum(float(tally.totals["ptx_loss"]) for tally in losses if tally.totals)
        found = {name: p.grad.clone() for name, p in own.models.policy.named_parameters() if p.grad is not None}
        return {**found, "loss": torch.tensor(own_loss)}

    whole = gradient(1)
    assert whole["loss"] > 0.5 * 3  # gamma times the loss of a random model
    for other in (gradient(1, micro_rows=2), gradient(1, micro_rows=1, row_tokens=0), gradient(2), gradient(12)):
        assert distance(whole, other) < 1e-6


def test_neither_random_states_nor_batches_are_touched(tiny_policy: Path, text: Path) -> None:
    # A weight so small that no sum of floats moves: all must be as without text, bit for bit.
    runs = []
    for own in (
        loop(settings(tiny_policy, preset="ppo", updates=2)),
        with_text(tiny_policy, text, 1e-30, preset="ppo", updates=2),
    ):
        reports: list[StepReport] = []
        random.seed(4)
        np.random.seed(5)
        own.run(on_step=reports.append)
        drawn = [[r.token_ids for g in report.sampled.groups for r in g.responses] for report in reports]
        states = (torch.get_rng_state().tolist(), np.random.rand(), random.random())
        runs.append((drawn, states, own.supply.order.position, weights(own)))
    (drawn, states, position, plain), (drawn_too, states_too, position_too, tiny) = runs
    assert (drawn, states, position) == (drawn_too, states_too, position_too)
    assert distance(plain, tiny) == 0.0
    assert loop(settings(tiny_policy)).ptx is None


def test_text_is_learned_and_told(tiny_policy: Path, text: Path) -> None:
    own = with_text(tiny_policy, text, 1.0, steps=12, rate=1e-2, ptx_rows=6)
    rows: list[dict[str, float]] = []
    own.run(on_step=lambda report: rows.append(report.metrics))
    assert rows[0]["update/ptx_nll"] > 4.0 > 2.0 > rows[-1]["update/ptx_nll"]
    assert rows[0]["update/ptx_loss"] == pytest.approx(rows[0]["update/ptx_nll"], rel=1e-5)  # gamma is 1
    assert own.ptx is not None and own.ptx.order.position == 12 * 6
    # Tokens but the first of each text, and an end mark each; the completion of the sixth row, and its end mark.
    tokenizer = own.models.tokenizer
    counted = sum(len(tokenizer(one)["input_ids"]) for one in TEXTS) + len(tokenizer("1 + 2 = 3")["input_ids"]) + 1
    assert own.ptx.about.startswith(f"ptx 1 on 6 rows ({counted} counted tokens) of {text}, 6 an update; 0 cut")


def test_long_rows_are_cut(tiny_policy: Path, text: Path) -> None:
    own = with_text(tiny_policy, text, ptx_tokens=5)
    assert own.ptx is not None
    assert max(len(row.prompt) + len(row.response) for row in own.ptx.rows) == 5
    # The row with a prompt of more than five tokens has nothing left to count, "One" with its end mark fits.
    assert (own.ptx.data.dropped, own.ptx.data.rows) == (1, 5)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tiny_policy: Path, text: Path, tmp_path: Path) -> None:
    more = {"steps": 5, "save_steps": 1, "updates": 2, "epochs": 2}
    straight = with_text(tiny_policy, text, **more)
    whole: list[dict[str, float]] = []
    straight.run(on_step=lambda report: whole.append(report.metrics))
    parts: list[dict[str, float]] = []

    class Stopped(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise Stopped
        parts.append(report.metrics)

    with pytest.raises(Stopped):
        with_text(tiny_policy, text, **more).run(work=tmp_path / "work", on_step=stop)
    torch.manual_seed(99)
    again = with_text(tiny_policy, text, **more)
    again.run(work=tmp_path / "work", resume=True, on_step=lambda report: parts.append(report.metrics))
    assert distance(weights(straight), weights(again)) == 0.0
    assert straight.ptx is not None and again.ptx is not None
    assert straight.ptx.order.position == again.ptx.order.position == 5 * 4 * 4
    timeless = [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in whole]
    assert [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in parts] == timeless
    # The rows of the last steps are not those of the first ones: the position is what makes this pass.
    assert straight.state() == again.state() and again.state()["ptx"] == 80


def test_where_rows_come_from(tmp_path: Path, text: Path) -> None:
    rows = text_rows(str(text))
    assert [row.response.text for row in rows] == [*TEXTS, "1 + 2 = 3"]
    assert [row.prompt for row in rows] == [""] * 5 + ["One apple and two: "]
    played = text_rows("playground:train:3:7")
    assert len(played) == 3
    assert all("\\boxed{" in row.response.text and "?" in str(row.prompt) for row in played)
    (tmp_path / "array.json").write_text(json.dumps([{"text": "a b", "source": "x"}]))
    assert text_rows(str(tmp_path / "array.json"))[0].response.text == "a b"
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds no rows of text; give some, or leave ptx 0"):
        text_rows(str(tmp_path / "empty.json"))
    (tmp_path / "wrong.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match=r"wrong.jsonl:1, field 'text': must be text; got 3"):
        text_rows(str(tmp_path / "wrong.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"other.jsonl:1: needs 'prompt' and 'completion'"):
        text_rows(str(tmp_path / "other.jsonl"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"change": ("ptx=0.1",)}, "ptx needs text to learn from; got ptx=0.1 without it, give ptx_text"),
        ({"ptx_text": "t.jsonl"}, r"ptx_text='t.jsonl' has no effect with ptx=0; add the change ptx=0.1"),
        ({"ptx_rows": 3}, "ptx_rows=3 has no effect with ptx=0"),
        ({"change": ("ptx=0.1",), "ptx_text": "t", "ptx_rows": 0}, "ptx_rows must be 1 or more"),
        ({"change": ("ptx=0.1",), "ptx_text": "t", "ptx_tokens": 1}, "ptx_tokens must be 2 or more"),
        ({"change": ("ptx=-1",), "ptx_text": "t"}, "ptx must be at least 0; got -1"),
    ],
)
def test_one_without_the_other_is_refused(more: dict[str, Any], said: str, tiny_policy: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(tiny_policy, **more)


SCRIPT = """
import sys, torch
from pathlib import Path
from test_rewardkit_rl_ptx import with_text
for shard in (False, True):
    own = with_text(Path(sys.argv[2]), Path(sys.argv[3]), 2.0, ptx_rows=3, micro_rows=1, shard=shard)
    own.run()
    tensors = own.tensors()
    if own.accelerator.is_main_process:
        torch.save(tensors["policy"], Path(sys.argv[1], f"{shard}.pt"))
"""


@pytest.mark.slow
def test_two_processes_learn_as_one(tiny_policy: Path, text: Path, tmp_path: Path) -> None:
    done = in_two(SCRIPT, tmp_path, tmp_path, tiny_policy, text)
    assert done.returncode == 0, done.stderr
    one = with_text(tiny_policy, text, 2.0, ptx_rows=3)
    one.run()
    for shard in (False, True):
        assert distance(torch.load(tmp_path / f"{shard}.pt", weights_only=True), weights(one)) < 1e-4
