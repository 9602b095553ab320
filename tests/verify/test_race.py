"""A race: who takes part takes turns, and one that fails has an error and stops no other."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import Recipe

from funnel_export.config import Dtype
from funnel_export.verify.contender import Lineup
from funnel_export.verify.latency import Model
from funnel_export.verify.outcome import distance
from funnel_export.verify.race import Contender, Entry, race

BATCHES = {(1, 5): [[5, 6, 7, 8, 9]], (2, 3): [[5, 6, 7], [9, 8, 7]]}

TOY = """
import os, sys
from funnel_export.verify.turns import serve

class Toy:
    facts = {"device": "toy", "precision": "float32"}
    def __init__(self, order):
        self.order = order
    def note(self, what):
        with open(self.order["log"], "a") as log:
            log.write(f"{self.order['name']} {what}\\n")
    def run(self, ids):
        print("a library prints this to stdout")
        self.note("run")
        return [float(sum(map(sum, ids)))] * 200
    def prepare(self, ids):
        def call():
            self.note(f"call {len(ids)}x{len(ids[0])}")
            if self.order.get("dies") and len(ids) == 2:
                sys.stderr.write("last words")
                sys.stderr.flush()
                os.kill(os.getpid(), 9)
            if self.order.get("raises"):
                raise ValueError("out of luck")
        return call

memory = iter([100, 170, 200, 230, 500, 500, 500])
serve(Toy, lambda: next(memory))
"""


def toy(name: str, log: Path, **order: Any) -> Contender:
    """A contender that notes what it is told to do."""
    order = {"name": name, "log": str(log), **order}
    return Contender(runtime=name, model=Model.DENSE, dtype=Dtype.FLOAT32, order=order, program=("-c", TOY))


def own(runtime: str, lineup: Lineup) -> Contender:
    return Contender.of(runtime, Model.FUNNEL, Dtype.FLOAT32, lineup)


def run(contenders: list[Contender], **options: Any) -> list[Entry]:
    return race(contenders, BATCHES, **{"rounds": 2, "warmup": 1, "progress": lambda *_: None, **options})


def test_contenders_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one, other = run([toy("a", log), toy("b", log)])
    ready = ["a run", "a call 1x5", "b run", "b call 1x5"]
    rounds = ["a call 1x5", "b call 1x5"] * 3
    assert log.read_text().splitlines()[:10] == ready + rounds
    assert [len(times.seconds) for times in one.times.values()] == [2, 2]
    assert one.result.device == "toy"
    assert other.result.error is None


def test_only_what_a_contender_adds_to_the_device_is_its_own(tmp_path: Path) -> None:
    (entry,) = run([toy("a", tmp_path / "log")])
    assert entry.result.memory is not None
    assert entry.result.memory.device_bytes == (170 - 100) + (230 - 200) + (500 - 500)
    assert entry.result.memory.host_bytes > 1 << 20


@pytest.mark.parametrize(
    ("fault", "said"), [({"dies": True}, "(?s)SIGKILL.*last words; the machine"), ({"raises": True}, "out of luck")]
)
def test_one_that_fails_stops_no_other(fault: dict[str, Any], said: str, tmp_path: Path) -> None:
    bad, good = run([toy("bad", tmp_path / "log", **fault), toy("good", tmp_path / "log")])
    assert re.search(said, str(bad.result.error))
    assert bad.times == {}
    assert (good.result.error, len(good.times)) == (None, 2)


def test_one_that_does_not_load_says_why(tmp_path: Path) -> None:
    (entry,) = run([own("onnxruntime", Lineup(bundle=tmp_path, target="onnxruntime"))])
    assert "BundleError: there is no bundle here" in str(entry.result.error)


def test_shapes_that_a_contender_does_not_take_are_left_out() -> None:
    lineup = Lineup(bundle=Recipe().bundle().path, target="onnxruntime")
    contender = Contender.of("x", Model.FUNNEL, Dtype.FLOAT32, lineup, shapes=frozenset({(2, 3)}))
    (entry,) = run([contender], rounds={(1, 5): 1, (2, 3): 3})
    assert list(entry.times) == [(2, 3)]
    assert len(entry.times[2, 3].seconds) == 3


def test_every_runtime_computes_the_bundle() -> None:
    bundle = Recipe().bundle()
    entries = run(
        [
            own("eager", Lineup(bundle=bundle.path)),
            own("bfloat16", Lineup(bundle=bundle.path, dtype=Dtype.BFLOAT16)),
            own("onnxruntime", Lineup(bundle=bundle.path, target="onnxruntime")),
            own("openvino", Lineup(bundle=bundle.path, target="openvino")),
        ]
    )
    assert [entry.result.error for entry in entries] == [None] * 4
    assert [entry.result.precision for entry in entries] == ["float32", "bfloat16", "float32", "f32"]
    eager, low, ort, openvino = (entry.times[2, 3].sample for entry in entries)
    assert max(distance(ort, eager), distance(openvino, eager)) < 1e-5
    assert 1e-5 < distance(low, eager) < 0.2


def test_prepared_calls_run_on_their_inputs() -> None:
    from funnel_export.targets import get_target

    bundle = Recipe().bundle()
    ids = np.array(BATCHES[2, 3])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for target in ("onnxruntime", "openvino"):
        session = get_target(target).load(bundle)
        before = session.run(inputs)["logits"]
        call = session.prepare(inputs)
        call()
        call()
        assert np.array_equal(session.run(inputs)["logits"], before)


def test_distance() -> None:
    assert distance([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert not distance([float("nan")], [1.0]) <= 1
    assert not distance([1.0, 2.0], [1.0]) <= 1
