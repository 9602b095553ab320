"""Latency reports for tests, with numbers that occur nowhere else."""

from typing import Any

from funnel_export import Bundle
from funnel_export.commands.demo import Demo
from funnel_export.commands.generate import Generated
from funnel_export.latency.latency_report import LatencyReport, Memory, Row, RunnerResult, compare, summarize
from funnel_export.latency.verdict import judge
from funnel_export.verify.metrics import Metrics
from funnel_export.verify.parity_report import CaseResult, ParityReport, TargetResult

RUNTIMES = ("eager", "onnxruntime", "openvino")


def make_row(runtime: str, batch: int, length: int, dense: float, ratio: float = 0.75) -> Row:
    """A row whose rounds spread by a few percent around `dense` milliseconds."""
    spread = [0.97, 0.99, 1.0, 1.02, 1.04]
    denses = [dense / 1000 * x for x in spread]
    funnels = [each * ratio * y for each, y in zip(denses, reversed(spread), strict=True)]
    return Row(
        runtime=runtime,
        batch=batch,
        length=length,
        dense=summarize(denses),
        funnel=summarize(funnels),
        ratio=compare(funnels, denses),
        predicted=0.7125,
        dense_first_ms=3 * dense,
        funnel_first_ms=2 * dense,
        speedup_over_eager=compare([2 * each for each in denses], funnels),
    )


def make_parity(bundle: Bundle, *, passed: bool = True, **changes: Any) -> ParityReport:
    """A report of two targets on one batch; `changes` are fields of it."""
    floor = Metrics(max_abs=1e-4, mean_abs=1e-5, p999_abs=1e-4, max_rel=1e-4, rms_rel=1e-5, cosine=1.0)
    case = CaseResult(case="1x64", metrics=floor, passed=passed)
    facts = {
        "passed": passed,
        "graph_digests": {"model": bundle.model.sha256},
        "weights": bundle.manifest.weights,
        "engines": {},
        "dtype": bundle.spec.dtype,
        "reference": "float64",
        "factor": 4.0,
        "seed": 0,
        "floor": floor,
        "limit_max_rel": 4e-4,
        "limit_rms_rel": 4e-5,
        "lengths_left_out": [],
        "targets": [
            TargetResult(target=name, device="a device", precision="float32", passed=passed, cases=[case])
            for name in RUNTIMES[1:]
        ],
    }
    return ParityReport.model_validate({**facts, **changes})


def make_latency(bundle: Bundle, *, min_speedup: float | None = 1.1, **changes: Any) -> LatencyReport:
    """A report of three runtimes on two batches and two lengths; `changes` are fields of it."""
    rows = [
        make_row(runtime, batch, length, dense=(3.17 + index) * batch * length / 10)
        for index, runtime in enumerate(RUNTIMES)
        for batch in (1, 4)
        for length in (16, 64)
    ]
    rows = changes.pop("rows", rows)
    runners = [
        RunnerResult(
            runtime=runtime,
            model=model,
            dtype=bundle.spec.dtype,
            device="a device",
            load_seconds=1.234,
            memory=Memory(host_bytes=123_456_789, device_bytes=2_345_678_901),
        )
        for runtime in RUNTIMES
        for model in ("dense", "funnel")
    ]
    facts = {
        "conditions": {"processor": "a processor", "cpus": "2"},
        "task": bundle.spec.task,
        "dtype": bundle.spec.dtype,
        "funnel": bundle.manifest.funnel,
        "num_layers": bundle.architecture.num_hidden_layers,
        "parity": make_parity(bundle),
        "rounds": 5,
        "runners": runners,
        "rows": rows,
        "gate": None if min_speedup is None else judge(rows, min_speedup),
    }
    return LatencyReport.model_validate({**facts, **changes})


def make_demo(report: LatencyReport, cached: ParityReport) -> Demo:
    """A demo's result with a text of one token."""
    text = Generated(
        text="a",
        tokens=[1],
        prompt_tokens=3,
        finish_reason="length",
        seconds_to_first_token=1.0,
        prompt_tokens_per_second=3.0,
        tokens_per_second=None,
        cache_bytes=1,
        peak_memory_bytes=1,
    )
    return Demo(report, cached, text)


def put(bundle: Bundle, report: LatencyReport | ParityReport) -> None:
    """Lay a report into a bundle, as `check` or `bench` does."""
    name = "latency" if isinstance(report, LatencyReport) else "parity"
    folder = bundle.path / "reports"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(report.model_dump_json())
