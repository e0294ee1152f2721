"""Settings of one reinforcement learning run; free of torch. The method is a row of the table (`settings/table.py`).

A step draws `prompts` groups of `group` responses, scores them, and updates the policy `epochs` x `updates` times on
them. With one epoch and one update every ratio is 1 and clipping never acts: `regime` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

from prm.fit_config import default, refuse_without_effect, require, require_choices
from rewardkit.rl.settings.lone import refuse_lone
from rewardkit.rl.settings.off_policy import how_old, refuse_unweighted
from rewardkit.rl.settings.presets import PRESETS, preset
from rewardkit.rl.settings.table import Table
from search.engines.rows import RepetitionRule, check_sampling
from verifiers.core import Sampling
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """Settings of one run."""

    init: str
    """Policy to start from: a causal language model's folder or hub id; also the reference of the KL."""
    preset: str = "grpo"
    """reinforce, a2c, rloo, reinforce_pp, ppo, grpo, dr_grpo, dapo, gspo, gspo_token, cispo, pure, prm_step, opd, kdrl,
    kimi_k15, deepseek_v32, minirl, dppo, justrl, clip_cov, kl_cov, entropy_top, ds_grpo, bupo or prime."""
    change: tuple[str, ...] = ()
    """Changes to the preset, as section.setting=value: clip.high=0.28, kl.coefficient=0.01, aggregation=token."""
    teacher: str | None = None
    """Of kl.target teacher: a causal language model's folder or hub id, with the same tokenizer as the policy's."""
    steps: int = 100
    """Batches that are drawn and learned from."""
    prompts: int = 16
    """Problems a step."""
    group: int = 8
    """Responses a problem; 1 for what compares over the batch (reinforce_pp) or has its own start (prm_step)."""
    epochs: int = 1
    """Passes over a step's responses."""
    updates: int = 1
    """Optimiser updates a pass."""
    micro_rows: int = 32
    """Responses a forward and backward pass of one process."""
    row_tokens: int | None = None
    """Responses to one prompt are read behind it in one row of at most so many tokens; 0 reads each alone. Unless it is
    given, as many as make the work least."""
    rate: float = 1e-6
    """Learning rate, constant after `warmup` updates."""
    implicit_rate: float = 1e-6
    """Learning rate of the implicit reward model, of preset prime."""
    warmup: int = 0
    """Updates over which the rate rises to its value."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    temperature: float = 1.0
    """Sampling temperature; the policy that is trained is the one at this temperature."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this mass together; needs masks.keep_sampling (deepseek_v32 has it)."""
    top_k: int = 0
    """Draw from so many likeliest tokens; 0: all. Needs masks.keep_sampling."""
    max_new_tokens: int = 512
    """Longest response."""
    rounds: int = 4
    """Most times that groups are drawn to fill a step whose filter left some out."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What draws responses: the trained model itself, or vLLM in this process, which gets its weights every step."""
    engine_rows: int = 256
    """Most responses that decode at once."""
    vllm_memory: float = 0.4
    """Share of the device's memory that vLLM takes."""
    vllm_context: int = 0
    """Most tokens of a prompt and its response in vLLM; 0 is the model's own limit, for which there must be memory."""
    vllm_eager: bool = False
    """Let vLLM run without compiled graphs: it starts sooner and decodes more slowly."""
    staleness: int = 0
    """Steps that the weights which draw a step's responses are behind: a second process draws so many steps ahead while
    this one learns. 0 draws when a step begins."""
    sampler_threads: int = 1
    """Of staleness: threads of the process that draws."""
    segment_tokens: int = 0
    """A response that has not ended after so many new tokens of a step goes on in the next one, and is learned from
    once its whole group has ended; 0 draws responses at once."""
    segment_age: int = 4
    """Of segment_tokens: most steps that the weights of a response's first piece may be behind; others are dropped."""
    repetition: int = 0
    """End a response whose last tokens are one pattern of at most so many tokens again and again; 0 lets it go on."""
    repetition_times: int = 4
    """How often the pattern must stand there."""
    overlap: bool = True
    """Judge a problem's responses as soon as all are there, while others decode; a reward function then gets one
    problem a call. Off, it gets all responses of a step."""
    value_model: Literal["shared", "own"] = "own"
    """Of a critic: a model of its own, or a head on the policy's trunk."""
    lora_rank: int = 0
    """Rank of LoRA adapters; without them the model is the reference. 0 trains all weights."""
    lora_alpha: float = 16.0
    """Scale of the adapters."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get adapters."""
    shard: bool = False
    """With several processes: cut the policy's weights, gradients and optimiser state over them (FSDP2)."""
    bf16: bool = False
    """Compute in bfloat16 (weights stay float32)."""
    gap: float | None = None
    """Mean difference of sampler's and trainer's log-probabilities above which a run stops; unless it is given 0.001,
    with bf16 0.05."""
    eval_every: int = 0
    """Steps between measurements on held-out problems; 0 measures none."""
    eval_samples: int = 4
    """Responses a held-out problem."""
    ptx_text: str | None = None
    """Text whose next-token loss is added with the weight of --change ptx=0.1: a file of rows with text, or with prompt
    and completion; a hub id (ID or ID:SPLIT); playground:SPLIT:COUNT, its problems with worked solutions."""
    ptx_rows: int = 8
    """Rows of it an optimiser update, over all processes."""
    ptx_tokens: int = 512
    """Longest of these rows; a longer one is cut there."""
    save_steps: int = 0
    """Steps between checkpoints that a run can go on from; 0 keeps none."""
    seed: int = 0
    """Seed of problems' order, responses and everything else."""

    def __post_init__(self) -> None:
        counts = ("steps", "prompts", "group", "epochs", "updates", "micro_rows", "max_new_tokens", "rounds")
        for name in (*counts, "ptx_rows"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ConfigError(f"{name} must be a whole number; got {value!r}")
            if value < 1:
                raise ConfigError(f"{name} must be 1 or more; got {value!r}")
        require(self, ("rate", "implicit_rate", "max_grad_norm", "temperature", "lora_alpha"), above=True)
        require(self, ("warmup", "weight_decay", "lora_rank", "eval_every", "save_steps"), above=False)
        for name, above in (("row_tokens", False), ("gap", True)):
            if getattr(self, name) is not None:
                require(self, (name,), above=above)
        require_choices(self, {"value_model": ("shared", "own")})
        self._check_sampler()
        if self.eval_samples < 1:
            raise ConfigError(f"eval_samples must be 1 or more; got {self.eval_samples!r}")
        if self.eval_samples != default(self, "eval_samples") and not self.eval_every:
            raise ConfigError(f"eval_samples={self.eval_samples!r} has no effect with eval_every=0; set it")
        if self.rounds != default(self, "rounds") and self.table.filter == "none" and not self.segment_tokens:
            raise ConfigError(
                f"rounds={self.rounds!r} has no effect with filter='none', which leaves no group out; add the change "
                "filter=outcome, or leave it"
            )
        if self.prompts % self.updates:
            raise ConfigError(f"updates must divide prompts; got {self.updates} updates for {self.prompts} prompts")
        # Refuses a top_p or top_k that is none.
        _ = self.sampling
        table = self.table
        if self.group == 1:
            refuse_lone(table)
        if (table.kl.target == "teacher") is not (self.teacher is not None):
            raise ConfigError(
                f"teacher goes with kl.target='teacher' and with no other; got {self.teacher!r} and kl.target="
                f"{table.kl.target!r}"
            )
        if self.implicit_rate != default(self, "implicit_rate") and table.implicit is None:
            raise ConfigError(
                f"implicit_rate={self.implicit_rate!r} has no effect without an implicit reward model; use preset "
                "'prime', or leave it"
            )
        if self.cuts and not table.masks.keep_sampling:
            raise ConfigError(
                f"top_p={self.top_p:g} and top_k={self.top_k} cut tokens off that the trainer would count, so that no "
                "ratio is 1; add the change masks.keep_sampling=true"
            )
        if table.masks.keep_routing and self.engine != "transformers":
            raise ConfigError(
                f"masks.keep_routing needs to know which experts the sampler took, and engine={self.engine!r} does not "
                "say; use engine 'transformers', or leave masks.keep_routing out"
            )
        if self.off_policy:
            cause = f"staleness={self.staleness}" if self.staleness else f"segment_tokens={self.segment_tokens}"
            refuse_unweighted(table, cause, cuts=self.cuts)
        elif table.kl.target == "old" and self.epochs * self.updates == 1:
            raise ConfigError(
                "kl.target='old' with one update a batch holds nothing: the policy is still the old one then; set "
                "updates or epochs to 2 or more"
            )
        if self.value_model == "shared" and table.critic is None:
            raise ConfigError(
                f"value_model='shared' has no effect with preset {self.preset!r}, which has no critic; take one that "
                "has, such as 'ppo', or leave it out"
            )
        if table.ptx and self.ptx_text is None:
            raise ConfigError(f"ptx needs text to learn from; got ptx={table.ptx:g} without it, give ptx_text")
        if self.ptx_tokens < 2:
            raise ConfigError(f"ptx_tokens must be 2 or more, as nothing predicts a first one; got {self.ptx_tokens!r}")
        for name in ("ptx_text", "ptx_rows", "ptx_tokens") if not table.ptx else ():
            if getattr(self, name) != default(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} has no effect with ptx=0; add the change ptx=0.1")

    @cached_property
    def table(self) -> Table:
        """The method."""
        return preset(self.preset, **changes_of(self.change, PRESETS))

    def check_resume(self) -> None:
        """Raise ConfigError where a run keeps no checkpoints to go on from."""
        if not self.save_steps:
            raise ConfigError(
                "resume has no effect without checkpoints; set save_steps to 1 or more, or leave resume out"
            )

    @property
    def off_policy(self) -> bool:
        """Whether responses may come from older weights than those that learn from them."""
        return bool(self.staleness or self.segment_tokens)

    @property
    def oldest_piece(self) -> int:
        """Most steps that the weights which drew a token may be behind."""
        return self.segment_age if self.segment_tokens else self.staleness

    @property
    def cuts(self) -> bool:
        """Whether the sampler leaves tokens out."""
        return self.top_p < 1.0 or self.top_k > 0

    @property
    def gap_limit(self) -> float:
        """What the gap must stay below."""
        return (0.05 if self.bf16 else 1e-3) if self.gap is None else self.gap

    @property
    def sampling(self) -> Sampling:
        """How responses are drawn."""
        return Sampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_new_tokens=self.max_new_tokens
        )

    @property
    def repetition_rule(self) -> RepetitionRule | None:
        """When a response is ended for repeating itself."""
        if not self.repetition:
            return None
        return RepetitionRule(longest=self.repetition, times=self.repetition_times)

    def _check_sampler(self) -> None:
        require_choices(self, {"engine": ("transformers", "vllm")})
        require(self, ("engine_rows", "vllm_memory"), above=True)
        require(self, ("vllm_context", "repetition"), above=False)
        _ = self.repetition_rule
        require(self, ("sampler_threads", "segment_age"), above=True)
        require(self, ("staleness", "segment_tokens"), above=False)
        for name, owner in (("sampler_threads", "staleness"), ("segment_age", "segment_tokens")):
            if not getattr(self, owner) and getattr(self, name) != default(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} has no effect with {owner}=0; set it, or leave both")
        if self.segment_tokens and self.segment_age < self.staleness:
            raise ConfigError(
                f"segment_age={self.segment_age} drops every response that staleness={self.staleness} draws; make it "
                "larger"
            )
        if self.staleness and self.engine == "vllm":
            raise ConfigError(
                f"staleness={self.staleness} draws in a second process, and vLLM draws in this one so far; take "
                "engine='transformers', or staleness 0"
            )
        if self.segment_tokens >= self.max_new_tokens:
            raise ConfigError(
                f"segment_tokens={self.segment_tokens} has no effect with max_new_tokens={self.max_new_tokens}, which "
                "is no longer; make it smaller"
            )
        if self.engine == "vllm":
            check_sampling(self.sampling)
            if self.vllm_memory > 1:
                raise ConfigError(f"vllm_memory is a share of the device's memory, at most 1; got {self.vllm_memory!r}")
        settings = ("vllm_memory", "vllm_context", "vllm_eager")
        refuse_without_effect(self, tuple((name, "engine", ("vllm",), "it is vLLM's") for name in settings))
        if not self.repetition and self.repetition_times != default(self, "repetition_times"):
            raise ConfigError(
                f"repetition_times={self.repetition_times!r} has no effect without repetition, the longest pattern; "
                "set it, or leave both out"
            )

    @property
    def regime(self) -> str:
        """One line on what the settings amount to."""
        own = self.table
        times = self.epochs * self.updates
        policy = "on-policy (1 update a batch): clipping inactive, ratio 1"
        if times > 1:
            policy = f"{times} updates a batch: the ratio moves from 1, and clipping acts"
        if self.off_policy:
            old = how_old(staleness=self.staleness, segment_tokens=self.segment_tokens, oldest_piece=self.oldest_piece)
            policy = f"off-policy ({old}; {times} update{'s' * (times > 1)} a batch): no ratio begins at 1"
        kl = "no KL" if own.kl.target == "none" else f"{own.kl.estimator} in {own.kl.place} x {own.kl.coefficient:g}"
        kl += f" to the {own.kl.target}" if own.kl.target not in ("none", "ref") else ""
        return (
            f"{self.preset}: {self.prompts} x {self.group} responses a step, {policy}; advantage {own.advantage.kind}, "
            f"aggregation {own.aggregation}, {kl}"
        )


def changes_of(texts: tuple[str, ...], presets: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that `preset` takes, from section.setting=value. Raises ConfigError for another spelling."""
    table = next(iter(presets.values())).table
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        section, dot, name = path.partition(".")
        known = {field.name for field in fields(table)}
        if not equals or section not in known:
            raise ConfigError(
                f"a change is section.setting=value with a section of {', '.join(sorted(known))}; got {text!r}"
            )
        if path in given:
            raise ConfigError(f"{path} is changed twice, by {path}={given[path]} and by {text}; leave one out")
        given[path] = value
        if dot:
            found.setdefault(section, {})[name] = read_value(value)
        else:
            found[section] = read_value(value)
    return found


def read_value(text: str) -> Any:
    """null, true, false, a number, or the text itself."""
    words = {"null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
