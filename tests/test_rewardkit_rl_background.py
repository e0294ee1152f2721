"""Drawing ahead in a second process: which weights draw what, that nothing depends on time, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rewardkit_rl_loop import PROBLEMS, distance, rewards, settings, weights

from rewardkit.rl.config import RlConfig
from rewardkit.rl.loop import Loop, StepReport
from rewardkit.rl.policy.models import load_language_model
from rewardkit.rl.policy.reader import Drawn, TokenReader
from rewardkit.rl.sampling import drawing_process
from rewardkit.rl.sampling.background import Background
from rewardkit.rl.sampling.drawing_process import Drawer, Job, Jobs, SharedWeights, serve
from rewardkit.rl.sampling.sampler import engine_over, module_weights
from rewardkit.rl.sampling.sampler_gap import GapGuard
from rewardkit.rl.sampling.supply import SupplyAhead
from verifiers.checkpoints import load_tokenizer
from verifiers.core import GenerationRequest, Problem, Sampling
from verifiers.errors import ConfigError, EngineError

ROOT = Path(__file__).parents[1]


class InThread:
    """Runs the other end of a connection in a thread of this process, and looks like a process."""

    def __init__(self, connection: Connection, weights: SharedWeights, config: RlConfig, device: str) -> None:
        self.exitcode: int | None = None
        self.sentinel, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(connection, weights, config, device))
        self._thread.start()

    def _run(self, connection: Connection, *given: Any) -> None:
        serve(connection, *given)
        connection.close()
        self.exitcode = 0
        os.close(self._ended)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def kill(self) -> None:
        """Its connection is closed, which ends it."""


def loop(config: RlConfig, *, threaded: bool = True) -> Loop:
    own = Loop(config, PROBLEMS, rewards(config), outcome="even")
    if threaded and isinstance(own.supply, SupplyAhead):
        own.supply.background._start = InThread
    return own


def ahead(init: Path, **more: Any) -> RlConfig:
    return settings(init, **{"staleness": 1, "steps": 4, "rate": 1e-2, "change": ("kl=null",), **more})


def ending(init: Path, folder: Path) -> Path:
    """The tiny policy with an end token about as likely as its responses are short: half end within 5 tokens."""
    model, tokenizer = load_language_model(str(init)), load_tokenizer(init)
    prefix = tuple(tokenizer("One apple and 3 apples: ").input_ids)
    request = GenerationRequest(prefix_ids=prefix, n=20, seed=1)
    (drawn,) = engine_over(model, tokenizer).generate([request], Sampling(max_new_tokens=20))
    with torch.no_grad():
        rows = [Drawn(prompt=prefix, response=one.token_ids) for one in drawn]
        mean_D = TokenReader(model).hidden(rows).mean(0)
        model.get_input_embeddings().weight[tokenizer.eos_token_id] += 2 * mean_D / mean_D.square().sum()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timeless(report: StepReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if not name.startswith("seconds/")}


def taken(config: RlConfig, *, threaded: bool = True) -> tuple[Loop, list[StepReport], list[dict[str, torch.Tensor]]]:
    """A run, its reports, and the weights that 0, 1, ... steps had learned from."""
    own = loop(config, threaded=threaded)
    seen, reports = [dict(module_weights(own.models.policy))], []
    seen[0] = {name: value.detach().clone() for name, value in seen[0].items()}

    def on_step(report: StepReport) -> None:
        reports.append(report)
        seen.append({name: value.detach().clone() for name, value in module_weights(own.models.policy)})

    own.run(on_step=on_step)
    return own, reports, seen


def read_with(
    config: RlConfig, found: dict[str, torch.Tensor], rows: list[Drawn], chunk: int = 16
) -> list[list[float]]:
    """Log-probabilities of responses under given weights."""
    model = load_language_model(config.init)
    model.load_state_dict(found, strict=False)
    with torch.no_grad():
        read = TokenReader(model, temperature=config.temperature).read(rows).logprobs
    return [row[: len(own.response)].tolist() for row, own in zip(read, rows, strict=True)]


@pytest.mark.parametrize("more", [{}, {"staleness": 2}, {"lora_rank": 2, "rate": 3e-2}])
def test_a_step_is_drawn_with_the_weights_of_so_many_steps_ago(more: dict[str, Any], tiny_policy: Path) -> None:
    config = ahead(tiny_policy, **more)
    _, reports, seen = taken(config)
    assert distance(seen[1], seen[3]) > 1e-3
    for number, report in enumerate(reports):
        version = max(0, number - config.staleness)
        assert report.metrics["draw/staleness"] == number - version
        assert report.metrics["draw/stale_dropped"] == 0
        assert 0 < report.metrics["sampler/gap"] < 1e-5
        rows, said = report.sampled.rows, [r.logprobs for g in report.sampled.groups for r in g.responses]
        for own, told in zip(read_with(config, seen[version], rows), said, strict=True):
            assert own == pytest.approx(told, abs=1e-5)
        if number > config.staleness:
            # Which is more than what any other weights say.
            others = read_with(config, seen[number], rows)
            apart = [torch.tensor(own) - torch.tensor(told) for own, told in zip(others, said, strict=True)]
            assert torch.cat(apart).abs().max() > 1e-3


def test_drawn_ahead_with_weights_that_stay_the_responses_are_the_same(tiny_policy: Path) -> None:
    """Same problems, same streams: only the weights differ from drawing when a step begins."""
    now, later = (taken(ahead(tiny_policy, staleness=s, steps=3, rate=1e-12))[1] for s in (0, 1))
    for one, other in zip(now, later, strict=True):
        assert [g.problem for g in one.sampled.groups] == [g.problem for g in other.sampled.groups]
        for a, b in zip(one.sampled.groups, other.sampled.groups, strict=True):
            assert [r.token_ids for r in a.responses] == [r.token_ids for r in b.responses]


def test_the_first_update_is_clipped_where_the_policy_has_moved(tiny_policy: Path) -> None:
    _, reports, _ = taken(ahead(tiny_policy, preset="dr_grpo", change=()))
    assert reports[0].metrics["update/ratio_least"] == pytest.approx(1, abs=1e-5)
    late = reports[3].metrics
    assert late["update/ratio_least"] < 0.95 and late["update/ratio_greatest"] > 1.05
    assert late["update/clipped_high"] + late["update/clipped_low"] > 0
    assert late["update/old_kl"] > 1e-4


def gradients(init: Path, **more: Any) -> list[torch.Tensor]:
    """Of the last of three updates on responses of older weights."""
    own, _, _ = taken(ahead(init, steps=3, **more))
    return [p.grad.clone() for p in own.models.policy.parameters() if p.grad is not None]


def test_importance_weights_do_what_the_ratio_does(tiny_policy: Path) -> None:
    """One update a batch: l = o, so e^(o - mu) A grad l is the gradient of the ratio e^(l - mu) times A."""
    weighed = ("masks.importance=truncate", "masks.level=token")
    one = gradients(tiny_policy, preset="reinforce", change=weighed)
    other = gradients(tiny_policy, preset="reinforce", change=("ratio.level=token",))
    apart = sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5
    size = sum(float(a.square().sum()) for a in one) ** 0.5
    assert apart < 1e-4 * size
    # Capped, it is another update: the weights are not all 1.
    cut = gradients(tiny_policy, preset="reinforce", change=(*weighed, "masks.high=1.01"))
    assert sum(float((a - b).square().sum()) for a, b in zip(one, cut, strict=True)) ** 0.5 > 0.01 * size


@pytest.mark.parametrize(
    "more",
    [
        {"staleness": 1},
        {"staleness": 2, "preset": "dapo", "group": 2, "rounds": 6, "change": ()},
        {"staleness": 1, "segment_tokens": 3, "prompts": 6},
    ],
)
def test_stopped_at_any_step_a_run_goes_on_bit_for_bit(more: dict[str, Any], tiny_policy: Path, tmp_path: Path) -> None:
    init = ending(tiny_policy, tmp_path / "policy") if "segment_tokens" in more else tiny_policy
    config = ahead(init, steps=5, save_steps=1, **more)
    straight, wanted, _ = taken(config)
    if "segment_tokens" in more:
        assert sum(report.metrics["draw/put_away"] for report in wanted) > 20
        assert {piece.version for g in wanted[4].sampled.groups for p in g.pieces for piece in p} > {3}
    if "preset" in more:
        assert max(report.metrics["draw/groups"] for report in wanted) > config.prompts
        # What a filter wants besides comes from the weights as they are.
        assert min(report.metrics["draw/staleness"] for report in wanted[2:]) < 2

    def keep(report: StepReport) -> None:
        if report.step > 1:
            shutil.copytree(tmp_path / "work", tmp_path / f"stopped-{report.step - 1}")

    loop(config).run(work=tmp_path / "work", on_step=keep)
    for last in range(1, 5) if len(more) == 1 else (2, 4):
        found: list[StepReport] = []
        again = loop(config)
        again.run(work=tmp_path / f"stopped-{last}", resume=True, on_step=found.append)
        assert distance(weights(straight), weights(again)) == 0.0
        assert [timeless(one) for one in found] == [timeless(one) for one in wanted[last:]]


def test_a_smaller_bound_drops_what_a_checkpoint_holds(tiny_policy: Path, tmp_path: Path) -> None:
    """Two steps were drawn ahead, by weights that are 2 steps behind each: with a bound of 1 both are drawn anew."""
    seen: list[StepReport] = []

    class Stopped(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        loop(ahead(tiny_policy, staleness=2, steps=9, save_steps=1)).run(work=tmp_path, on_step=stop)
    again = loop(ahead(tiny_policy, staleness=1, steps=5))
    again.run(work=tmp_path, resume=True, on_step=seen.append)
    assert [report.metrics["draw/stale_dropped"] for report in seen] == [2 * 16, 0]
    assert [report.metrics["draw/staleness"] for report in seen] == [0, 0]


def test_a_key_press_and_the_end_of_a_run_end_the_process_and_a_kill_is_told(tiny_policy: Path) -> None:
    """A real process: it draws what the thread does, ignores the key press, and its death ends the run at once."""
    config = ahead(tiny_policy, steps=6)
    _, wanted, _ = taken(config)
    own = loop(config, threaded=False)
    assert isinstance(own.supply, SupplyAhead)
    reports: list[StepReport] = []
    killed: list[float] = []
    process: Any = None

    def on_step(report: StepReport) -> None:
        nonlocal process
        reports.append(report)
        assert isinstance(own.supply, SupplyAhead)
        process = own.supply.background.process
        if report.step == 1:
            os.kill(process.pid, signal.SIGINT)
        if report.step == 4:
            os.kill(process.pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(EngineError, match=r"the process that draws has ended \(signal 9\), and with it the run"):
        own.run(on_step=on_step)
    assert time.monotonic() - killed[0] < 60
    assert not process.is_alive() and own.supply.background.process is None
    # What it had sent before it died, the responses of step 5 at most, is learned from.
    assert len(reports) in (4, 5)
    assert [timeless(one) for one in reports] == [timeless(one) for one in wanted[: len(reports)]]


SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_rewardkit_rl_background import ahead, loop

def on_step(report):
    print(own.supply.background.process.pid, flush=True)

if __name__ == "__main__":
    own = loop(ahead(sys.argv[2], steps=100_000), threaded=False)
    own.run(on_step=on_step)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number: int, tiny_policy: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(tmp_path / "script.py"), str(ROOT / "tests"), str(tiny_policy)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert alive(child)
        # A key press reaches the whole group, a kill this process alone.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        process.stdout.close()
        assert process.wait(60) != 0
    until = time.monotonic() + 30
    while alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child)


def test_a_script_that_would_start_itself_again_is_told_why(tiny_policy: Path, tmp_path: Path) -> None:
    """Such a process ends before it says a word."""

    class Gone(InThread):
        def _run(self, connection: Connection, *given: Any) -> None:
            connection.close()
            self.exitcode = 1
            os.close(self._ended)

    own = loop(ahead(tiny_policy))
    assert isinstance(own.supply, SupplyAhead)
    own.supply.background._start = Gone
    with pytest.raises(
        EngineError, match=r'ended before it began \(exit code 1\); a script must .* __name__ == "__main__"'
    ):
        own.run()


def test_what_breaks_there_is_told_here(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(drawing_process, "engine_over", broken)
    with pytest.raises(EngineError, match="the process that draws could not go on: MemoryError: no room"):
        loop(ahead(tiny_policy)).run()


def test_other_weights_than_its_own_end_a_run(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process holds what its engine says against its own reader, so age alone is no gap."""
    versions: list[int] = []

    class Astray(Drawer):
        def draw(self, job: Job, send: Callable[[Any], None]) -> None:
            versions.append(job.version)
            if job.version == 2:
                self._reader.temperature = 1.5
            super().draw(job, send)

    monkeypatch.setattr(drawing_process, "Drawer", Astray)
    with pytest.raises(EngineError, match=r"log-probabilities are .* from the trainer's on average in step 4"):
        loop(ahead(tiny_policy, steps=6)).run()
    assert versions[:4] == [0, 0, 1, 2]


def test_a_jump_of_the_gap_rings_below_the_limit() -> None:
    guard = GapGuard(limit=1e-3)
    for step, mean in enumerate([1e-4, 2e-4, 1e-4, 2e-4]):
        assert guard.observe(mean, step) == ()
    assert guard.observe(9e-4, 4) == ()  # four values are no median yet
    assert guard.observe(6e-4, 5) == ()  # exactly three times the median 2e-4
    (alarm,) = guard.observe(6.1e-4, 6)
    assert alarm.name == "sampler_gap" and alarm.new and "3 times the 0.0002 that is usual" in alarm.message
    other = GapGuard(limit=1e-3)
    other.from_state(guard.to_state())
    assert [one.observe(9e-4, 7)[0].new for one in (guard, other)] == [False, False]
    with pytest.raises(EngineError, match=r"more than gap=0\.001"):
        guard.observe(1.1e-3, 8)
    with pytest.raises(EngineError, match="are nan from the trainer's"):
        guard.observe(float("nan"), 9)
    rounding = GapGuard(limit=1e-3)
    for step in range(30):
        assert rounding.observe(1e-7 if step < 25 else 9e-6, step) == ()
    # Twenty are remembered: the median is over the last ones.
    assert rounding.observe(1.1e-5, 30)[0].new
    assert len(rounding.to_state()["last"]) == 20


def test_urgent_jobs_come_first_and_weights_lie_in_their_places() -> None:
    jobs = Jobs()
    for number, urgent in ((1, False), (2, False), (3, True), (4, True)):
        jobs.put(Job(number=number, version=0, requests=(), urgent=urgent))
    assert [job.number for _ in range(4) if (job := jobs.next())] == [3, 4, 1, 2]
    jobs.put(None)
    assert jobs.next() is None
    like = {"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(2, 2), "c": torch.ones(5, dtype=torch.bfloat16)}
    places = SharedWeights(like, places=2)
    for version in (4, 5):
        for value in places.at(version).values():
            value.fill_(version)
    assert {name: (value.dtype, value.shape) for name, value in places.at(4).items()} == {
        name: (value.dtype, value.shape) for name, value in like.items()
    }
    assert all(bool((value == 4).all()) for value in places.at(6).values())
    assert all(bool((value == 5).all()) for value in places.at(5).values())


def test_weights_are_not_written_over_while_a_job_needs_them(tiny_policy: Path) -> None:
    """Three jobs of the first version wait in one place; the second version comes behind all of them."""
    config = ahead(tiny_policy)
    model, request = load_language_model(config.init), GenerationRequest(prefix_ids=(5, 6, 7), n=2, seed=3)
    tokenizer = loop(config).models.tokenizer
    background = Background(config, places=1, start=InThread)
    wanted, streams = [], []
    try:
        for version, jobs in ((0, 3), (1, 1)):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + version)
            background.publish(version, module_weights(model))
            drawn = engine_over(model, tokenizer).generate([request], config.sampling)[0]
            for _ in range(jobs):
                wanted.append(drawn)
                streams.append(background.stream(version))
                streams[-1].submit([request])
        found = [dict(stream.collect())[0] for stream in streams]
    finally:
        background.close()
    assert [[one.token_ids for one in drawn] for drawn in found] == [[o.token_ids for o in d] for d in wanted]
    assert found[0][0].logprobs == found[2][0].logprobs != found[3][0].logprobs


def test_what_would_be_wrong_or_without_effect_is_refused(tiny_policy: Path) -> None:
    for more, said in (
        ({"preset": "reinforce", "change": ()}, r"takes them for the policy's own; add the changes masks.importance="),
        ({"preset": "rloo", "change": ()}, "use a preset with a ratio, such as grpo"),
        ({"preset": "bupo", "change": ("layer=0",)}, "layer compares one layer's policy with itself"),
        ({"preset": "deepseek_v32", "change": (), "top_p": 0.9}, "leave top_p and top_k as they are"),
        ({"engine": "vllm"}, "vLLM draws in this one so far"),
        ({"staleness": -1}, "staleness must be 0 or more"),
        ({"staleness": 0, "sampler_threads": 2}, "sampler_threads=2 has no effect with staleness=0"),
        ({"segment_age": 2}, "segment_age=2 has no effect with segment_tokens=0"),
        ({"staleness": 3, "segment_tokens": 4, "segment_age": 2}, "segment_age=2 drops every response"),
        ({"segment_tokens": 8}, "segment_tokens=8 has no effect with max_new_tokens=8"),
        ({"staleness": 0, "segment_tokens": 4, "preset": "a2c", "change": ()}, "segment_tokens=4 gives responses of"),
    ):
        with pytest.raises(ConfigError, match=said):
            ahead(tiny_policy, **more)
    for preset, change in (
        ("kimi_k15", ()),
        ("kl_cov", ()),
        ("reinforce", ("masks.importance=truncate", "masks.level=token")),
    ):
        ahead(tiny_policy, preset=preset, change=change)
    assert "drawn by a second process with weights 1 step behind; 1 update a batch" in ahead(tiny_policy).regime
    pieces = ahead(tiny_policy, staleness=0, segment_tokens=4, epochs=2).regime
    assert "off-policy (in pieces of 4 tokens a step, dropped at more than 4 steps behind; 2 updates" in pieces


def test_it_is_for_one_trainer_process(tiny_policy: Path) -> None:
    from rewardkit.rl.sampling.supply import supply_for

    own = loop(ahead(tiny_policy))
    with pytest.raises(ConfigError, match="staleness=1 works with one trainer process so far; got 2"):
        supply_for(own.config, own.supply.order, own.sampler, own.models, processes=2)


def test_problems_of_one_name_keep_their_own_answers(tiny_policy: Path) -> None:
    """A checkpoint tells problems by their place, since two may share an id."""
    from rewardkit.rl.sampling.drawing import Order
    from rewardkit.rl.sampling.supply import Supply

    own = loop(ahead(tiny_policy, staleness=0, segment_tokens=2))
    twins = [Problem(id="p", prompt="One apple and 1 apples: ", answer=answer) for answer in "ab"]
    supply = Supply(own.config, Order(twins, seed=0), own.sampler, models=own.models)
    supply.begin(0)
    draw = supply.draw(0, 4)
    assert draw is not None
    draw.collect()
    supply.drawn(draw)
    left = [group.problem.answer for group in draw.left]
    other = Supply(own.config, Order(twins, seed=0), own.sampler, models=own.models)
    other.from_state(supply.to_state())
    other.begin(1)
    again = other.again()
    assert again is not None and sorted(left) == ["a", "a", "b", "b"]
    assert [group.problem.answer for group in again.groups] == left
