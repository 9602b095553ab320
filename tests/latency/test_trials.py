"""Trials: runners are interleaved, and one that fails gets an error and does not stop the others."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import Recipe

from funnel_export.latency import trials
from funnel_export.latency.latency_report import Model
from funnel_export.latency.runner import RunnerSetup
from funnel_export.latency.shape import Shape
from funnel_export.latency.trials import Runner, RunnerRecord, run_trials
from funnel_export.latency.verdict import distance
from funnel_export.spec.choices import Dtype

pytestmark = pytest.mark.processes

WIDE = Shape(2, 3)
BATCHES = {Shape(1, 5): [[5, 6, 7, 8, 9]], WIDE: [[5, 6, 7], [9, 8, 7]]}

TOY = """
import os, sys
from funnel_export.latency.serve import serve

class Toy:
    facts = {"device": "toy", "precision": "float32"}
    def __init__(self, request):
        self.request = request
    def note(self, what):
        with open(self.request["log"], "a") as log:
            log.write(f"{self.request['name']} {what}\\n")
    def run(self, ids, steps):
        print("a library prints this to stdout")
        self.note("run")
        return [float(sum(map(sum, ids)))] * 200
    def prepare(self, ids, steps):
        def call():
            self.note(f"call {len(ids)}x{len(ids[0])}")
            if self.request.get("dies") and len(ids) == 2:
                sys.stderr.write("last words")
                sys.stderr.flush()
                os.kill(os.getpid(), 9)
            if self.request.get("raises"):
                raise ValueError("out of luck")
        return call

memory = iter([100, 170, 200, 230, 500, 500, 500])
serve(Toy, lambda: next(memory))
"""


def toy(name: str, log: Path, **request: Any) -> Runner:
    """A runner that logs its requests."""
    request = {"name": name, "log": str(log), **request}
    return Runner(runtime=name, model=Model.DENSE, dtype=Dtype.FLOAT32, request=request, program=("-c", TOY))


def own(runtime: str, setup: RunnerSetup) -> Runner:
    return Runner.of(runtime, Model.FUNNEL, Dtype.FLOAT32, setup)


def run(runners: list[Runner], **options: Any) -> list[RunnerRecord]:
    return run_trials(runners, BATCHES, **{"rounds": 2, "warmup": 1, "progress": lambda *_: None, **options})


def test_runners_are_interleaved(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one, other = run([toy("a", log), toy("b", log)])
    ready = ["a run", "a call 1x5", "b run", "b call 1x5"]
    rounds = ["a call 1x5", "b call 1x5"] * 3
    assert log.read_text().splitlines()[:10] == ready + rounds
    assert [len(times.seconds) for times in one.times.values()] == [2, 2]
    assert one.result.device == "toy"
    assert other.result.error is None


def test_every_timed_call_follows_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's threads spin for up to 50 ms after a call, and slow down the next runner."""
    found = importlib.util.find_spec("funnel_export.latency.trials")
    assert found is not None
    assert found.loader is not None
    fresh = importlib.util.module_from_spec(found)
    found.loader.exec_module(fresh)
    assert fresh.REST >= 0.05, "the tests' settings skip the pause; this is a fresh copy of the module"
    events: list[object] = []
    ask = RunnerRecord.ask

    def asked(record: RunnerRecord, request: Any, timeout: float) -> Any:
        events.append(request)
        return ask(record, request, timeout)

    monkeypatch.setattr(trials, "REST", 0.07)
    monkeypatch.setattr(trials.time, "sleep", events.append)
    monkeypatch.setattr(RunnerRecord, "ask", asked)
    log = tmp_path / "log"
    run([toy("a", log), toy("b", log)])
    calls = [index for index, event in enumerate(events) if event == {"ids": None}]
    assert len(calls) == 2 * len(BATCHES) * 3
    assert all(events[index - 1] == 0.07 for index in calls)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(600)", r"(?s)its process was killed: no answer in 2 s; signal SIGKILL"),
        ("print()\nimport time; time.sleep(600)", "its process answered with ''"),
        ("print('[1]')\nimport time; time.sleep(600)", r"its process answered with '\[1\]'"),
    ],
    ids=["silent", "an empty line", "no object"],
)
def test_a_runner_that_hangs_or_sends_garbage_is_killed(program: str, message: str, tmp_path: Path) -> None:
    odd = Runner(runtime="odd", model=Model.DENSE, dtype=Dtype.FLOAT32, request={}, program=("-c", program))
    first, second = run([odd, toy("a", tmp_path / "log")], timeout=2.0)
    assert re.match(message, str(first.result.error))
    assert second.result.error is None
    assert second.times


def test_a_runner_that_stops_reading_is_killed(tmp_path: Path) -> None:
    program = "import time; print('{}', flush=True); time.sleep(600)"
    odd = Runner(runtime="odd", model=Model.DENSE, dtype=Dtype.FLOAT32, request={}, program=("-c", program))
    ids = {Shape(64, 512): [[123456] * 512] * 64}
    records = run_trials([odd], ids, rounds=2, warmup=1, timeout=2.0, progress=lambda *_: None)
    (error,) = [record.result.error for record in records]
    assert str(error).startswith("its process was killed: it did not read a request in 2 s; signal SIGKILL")


def test_device_memory_of_a_runner_is_what_it_adds(tmp_path: Path) -> None:
    (record,) = run([toy("a", tmp_path / "log")])
    assert record.result.memory is not None
    assert record.result.memory.device_bytes == (170 - 100) + (230 - 200) + (500 - 500)
    assert record.result.memory.host_bytes > 1 << 20


@pytest.mark.parametrize(
    ("fault", "said"), [({"dies": True}, "(?s)SIGKILL.*last words; the machine"), ({"raises": True}, "out of luck")]
)
def test_a_runner_that_fails_does_not_stop_the_others(fault: dict[str, Any], said: str, tmp_path: Path) -> None:
    bad, good = run([toy("bad", tmp_path / "log", **fault), toy("good", tmp_path / "log")])
    assert re.search(said, str(bad.result.error))
    assert bad.times == {}
    assert (good.result.error, len(good.times)) == (None, 2)


def test_a_runner_that_fails_to_load_says_why(tmp_path: Path) -> None:
    (record,) = run([own("onnxruntime", RunnerSetup(bundle=tmp_path, target="onnxruntime"))])
    assert "BundleError: there is no bundle here" in str(record.result.error)


def test_shapes_that_a_runner_does_not_take_are_skipped() -> None:
    setup = RunnerSetup(bundle=Recipe().bundle().path, target="onnxruntime")
    runner = Runner.of("x", Model.FUNNEL, Dtype.FLOAT32, setup, shapes=frozenset({WIDE}))
    (record,) = run([runner], rounds={Shape(1, 5): 1, WIDE: 3})
    assert list(record.times) == [WIDE]
    assert len(record.times[WIDE].seconds) == 3


def test_every_runtime_computes_the_bundle() -> None:
    bundle = Recipe().bundle()
    records = run(
        [
            own("eager", RunnerSetup(bundle=bundle.path)),
            own("bfloat16", RunnerSetup(bundle=bundle.path, dtype=Dtype.BFLOAT16)),
            own("onnxruntime", RunnerSetup(bundle=bundle.path, target="onnxruntime")),
            own("openvino", RunnerSetup(bundle=bundle.path, target="openvino")),
        ]
    )
    assert [record.result.error for record in records] == [None] * 4
    assert [record.result.precision for record in records] == ["float32", "bfloat16", "float32", "f32"]
    eager, low, ort, openvino = (record.times[WIDE].sample for record in records)
    assert max(distance(ort, eager), distance(openvino, eager)) < 1e-5
    assert 1e-5 < distance(low, eager) < 0.2


def test_prepared_calls_do_not_change_later_results() -> None:
    from funnel_export.targets.registry import get_target

    bundle = Recipe().bundle()
    ids = np.array(BATCHES[WIDE])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for target in ("onnxruntime", "openvino"):
        session = get_target(target).load(bundle.model)
        before = session.run(inputs)["logits"]
        call = session.prepare(inputs)
        call()
        call()
        assert np.array_equal(session.run(inputs)["logits"], before)


def test_distance() -> None:
    assert distance([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert not distance([float("nan")], [1.0]) <= 1
    assert not distance([1.0, 2.0], [1.0]) <= 1
