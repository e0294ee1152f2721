"""The worker pool: hanging, greedy and dying workers are replaced; threads, forks and closing."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verifiers.errors import ConfigError
from verifiers.sandbox import WorkerPool

WORKER = """
import os, sys, time
from verifiers.sandbox import serve

def handle(request):
    what = request["do"]
    if what == "sleep":
        time.sleep(60)
    if what == "spin":
        while True:
            pass
    if what == "eat":
        held = []
        while True:
            held.append(bytearray(100 << 20))
    if what == "die":
        os._exit(3)
    if what == "recurse":
        def deeper():
            return deeper() + 1
        return deeper()
    print("noise on standard output")
    return {"echo": request["value"], "pid": os.getpid()}

serve(handle)
"""


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    (tmp_path / "worker_under_test.py").write_text(WORKER)
    pool = WorkerPool("worker_under_test", timeout_s=1.0, memory_mb=256, path=[str(tmp_path)])
    yield pool
    pool.close()


def echo(pool: WorkerPool, value: object) -> object:
    reply = pool.ask({"do": "echo", "value": value})
    assert reply.failure == "" and reply.value is not None
    return reply.value["echo"]


def test_starts_late_and_answers(pool: WorkerPool) -> None:
    assert not pool._all
    assert echo(pool, [1, "two", None]) == [1, "two", None]
    assert len(pool._all) == 1


def test_a_worker_is_kept(pool: WorkerPool) -> None:
    first, second = (pool.ask({"do": "echo", "value": 1}).value for _ in range(2))
    assert first is not None and second is not None and first["pid"] == second["pid"]


@pytest.mark.parametrize(
    ("what", "failure"),
    [("sleep", "timeout"), ("spin", "timeout"), ("eat", "memory"), ("die", "crash"), ("recurse", "crash")],
)
def test_failures_are_told_and_survived(pool: WorkerPool, what: str, failure: str) -> None:
    assert echo(pool, "before") == "before"
    (old,) = pool._all
    pool.timeout_s = 0.6 if failure == "timeout" else 20.0
    start = time.monotonic()
    reply = pool.ask({"do": what})
    assert (reply.failure, reply.value) == (failure, None)
    assert failure != "timeout" or time.monotonic() - start < 30.0
    assert old.process.poll() is not None  # killed and reaped
    assert echo(pool, "after") == "after"
    assert old not in pool._all


def test_a_large_message_goes_both_ways(pool: WorkerPool) -> None:
    assert echo(pool, "x" * 1_000_000) == "x" * 1_000_000
    assert pool.ask({"do": "echo", "value": "x" * (9 << 20)}).failure == "memory"


def test_threads_share_a_pool(tmp_path: Path) -> None:
    (tmp_path / "worker_under_test.py").write_text(WORKER)
    pool = WorkerPool("worker_under_test", timeout_s=20, workers=2, memory_mb=256, path=[str(tmp_path)])
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: echo(pool, n), range(40))) == list(range(40))
    assert len(pool._all) == 2
    pool.close()
    assert not pool._all


def test_a_module_that_cannot_start_is_a_crash() -> None:
    pool = WorkerPool("verifiers.no_such_module", timeout_s=1)
    reply = pool.ask({})
    assert reply.failure == "crash" and "status 1" in reply.detail


def test_a_pool_can_be_pickled_and_closed_twice(pool: WorkerPool) -> None:
    echo(pool, 1)
    other = pickle.loads(pickle.dumps(pool))
    assert echo(other, 2) == 2
    other.close()
    other.close()
    assert echo(other, 3) == 3
    other.close()


def test_a_forked_child_starts_its_own_workers(pool: WorkerPool) -> None:
    echo(pool, 1)
    (mine,) = pool._all
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = mine in pool._all
            os.write(writing, f"{kept} {echo(pool, 7)}".encode())
            pool.close()
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == b"False 7"
    os.close(reading)
    os.waitpid(child, 0)
    assert mine.process.poll() is None  # the child left it alone
    assert echo(pool, 2) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"timeout_s": 0}, "timeout_s"), ({"memory_mb": 1}, "memory_mb"), ({"workers": 0}, "workers")],
)
def test_settings_are_checked(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WorkerPool("verifiers.symbolic", **settings)  # type: ignore[arg-type]
