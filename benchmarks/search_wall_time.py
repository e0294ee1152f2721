"""A PRM beam search through the scheduler against the same search in lockstep, one problem at a time.

Both arms run one plan (`Beam`, N = 16, M = 4) on the same problems, policy and PRM, draw from the same streams, and
must return the same responses. The first arm works as search-and-learn's beam search does (described in its scripts;
none of its code is used): one problem at a time, all 16 rows of a level in one call that waits for the slowest, each
beginning decoded to text, put into the prompt and encoded again, its keys and values read anew, and every text scored
from its first token. The second is `search.run`: all problems at once, rows freed at step ends, kept keys and values,
scores of new tokens only. Arms in turns; a seed is another set of problems; ratios of seconds, bootstrap over seeds.
"""

from __future__ import annotations

import time
from typing import Any

from claims import arguments, figure, finish
from prm_labels import interval

from prm.cache import CachedScorer
from prm.model import ProcessModel
from rewardkit import playground
from search.engines.transformers_engine import TransformersEngine
from search.plans import Candidate, Search
from search.runner import run
from search.stepping import grow, step_stops
from search.strategies.beam import Beam
from search.tree import Tree
from verifiers.core import GenerationRequest, Problem, Sampling, StopReason, derive_seed
from verifiers.steps import encode_prompt

SAMPLING = Sampling(temperature=playground.TEMPERATURE, max_new_tokens=playground.MAX_NEW_TOKENS)


def lockstep(problem: Problem, engine: TransformersEngine, scorer: ProcessModel, seed: int) -> str:
    """The response with the best lowest step score, every level in one call."""
    prompt = encode_prompt(engine.tokenizer, problem.prompt)
    search = Search(
        tree=Tree(problem),
        prompt_ids=prompt,
        sampling=SAMPLING,
        seed=derive_seed(seed, problem.id),
        limit=min(SAMPLING.max_new_tokens, engine.context_length - len(prompt)),
    )
    stops = step_stops(engine.tokenizer)
    sampling = Sampling(temperature=SAMPLING.temperature, max_new_tokens=SAMPLING.max_new_tokens, stop_sequences=stops)
    plan = Beam(n=16, width=4).plan(search)
    nodes: list[Any] | None = None
    while True:
        try:
            wishes: Any = next(plan) if nodes is None else plan.send(nodes)
        except StopIteration as end:
            return best_text(search, end.value)
        requests = []
        for wish in wishes:
            # The text goes into the prompt and is encoded again; the ids are the same here, and are asked for.
            encode_prompt(engine.tokenizer, f"{problem.prompt}{wish.node.text}")
            requests.append(
                GenerationRequest(
                    prefix_ids=(*prompt, *wish.node.ids),
                    seed=search.request_seed(wish.name),
                    first=wish.name[0],
                    offset=wish.node.length,
                    max_new_tokens=search.limit - wish.node.length,
                )
            )
        nodes = []
        for wish, (drawn,) in zip(wishes, engine.generate(requests, sampling), strict=True):
            whole = wish.node.length + len(drawn.token_ids) >= search.limit
            paused = drawn.stop_reason is StopReason.STOP and drawn.token_ids[-1:] in stops
            ended = None if paused else drawn.stop_reason
            nodes.append(
                grow(
                    search.tree,
                    engine.tokenizer,
                    wish.node,
                    drawn.token_ids,
                    ended=StopReason.LENGTH if whole and paused else ended,
                )[-1]
            )
        texts = [search.tree.response(node) for node in nodes]
        for node, scores in zip(nodes, scorer.score_steps([problem] * len(texts), texts), strict=True):
            search.tree.score(node, scores)


def best_text(search: Search, candidates: list[Candidate]) -> str:
    """What rule `best` returns."""
    done = [one for one in candidates if one.node.ended is StopReason.STOP] or candidates
    return max(done, key=lambda one: search.value(one.node)).node.text


def one_seed(engine: TransformersEngine, model: ProcessModel, count: int, seed: int) -> dict[str, float]:
    """Seconds of both arms and how often they return the same."""
    problems = playground.problems(count, split="test", seed=seed + 700)
    alone = TransformersEngine(engine.model, engine.tokenizer, prefix_tokens=0)
    started = time.perf_counter()
    wanted = [lockstep(problem, alone, model, seed) for problem in problems]
    slow = time.perf_counter() - started
    own = TransformersEngine(engine.model, engine.tokenizer)
    started = time.perf_counter()
    found = run(
        problems,
        strategy=Beam(n=16, width=4),
        engine=own,
        scorer=CachedScorer(model),
        sampling=SAMPLING,
        seed=seed,
    )
    fast = time.perf_counter() - started
    texts = [result.response.text if result.response else "" for result in found.results]
    return {
        "ratio": slow / fast,
        "same": sum(a == b for a, b in zip(texts, wanted, strict=True)) / count,
        "occupancy": found.occupancy,
        "scorer share": found.ledger.scorer_seconds / fast,
    }


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    engine = TransformersEngine.load(playground.asset("policy"), dtype="float32")
    model = ProcessModel.load(playground.asset("prm"))
    found = [one_seed(engine, model, 8 if options.quick else 60, seed) for seed in range(2 if options.quick else 5)]
    ratio = interval([one["ratio"] for one in found])
    finish(
        "search_wall_time",
        [
            figure("seconds of a beam run, lockstep / scheduler", **ratio, floor=3.0, unit="x"),
            figure("share of problems with the same response", **interval([one["same"] for one in found]), floor=0.98),
            figure("row occupancy of the scheduler", **interval([one["occupancy"] for one in found]), floor=0.85),
            figure("share of its time spent on scores", **interval([one["scorer share"] for one in found])),
        ],
        options,
    )


if __name__ == "__main__":
    main()
