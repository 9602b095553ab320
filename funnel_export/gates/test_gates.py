"""The gates as tests. Those of parity and latency run for every target and engine that runs the bundle here."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from funnel_export.latency.latency_report import LatencyReport
    from funnel_export.verify.parity_report import ParityReport

Record = Callable[[str, object], None]


def test_parity(funnel_parity: "ParityReport", funnel_runtime: str) -> None:
    """The errors of a target are at most a small multiple of eager PyTorch's own."""
    from funnel_export.report.text import describe_parity

    (result,) = (result for result in funnel_parity.targets if result.name == funnel_runtime)
    if not result.passed:
        pytest.fail(describe_parity(funnel_parity.model_copy(update={"targets": [result]})), pytrace=False)


def test_quantization(funnel_parity: "ParityReport") -> None:
    """Quantized weights are what rounding makes of the original ones, and the outputs are near enough."""
    from funnel_export.report.cost import describe_cost

    cost = funnel_parity.quantization
    if cost is None or not cost.passed:
        pytest.fail("nothing was compared" if cost is None else "\n".join(describe_cost(cost)), pytrace=False)


def test_latency(
    request: pytest.FixtureRequest,
    pytestconfig: pytest.Config,
    funnel_runtime: str,
    record_testsuite_property: Record,
) -> None:
    """On every shape, a target is at least `--funnel-min-speedup` times as fast with the funnel as without."""
    from funnel_export.latency.verdict import judge

    wanted = pytestconfig.getoption("--funnel-min-speedup")
    if wanted is None:
        pytest.skip("no --funnel-min-speedup")
    report: LatencyReport = request.getfixturevalue("funnel_latency")
    rows = [row for row in report.rows if row.runtime == funnel_runtime]
    for row in rows:
        found = row.ratio.speedup
        interval = f"{found.low:.3f} to {found.high:.3f}"
        record_testsuite_property(f"speedup of {row.place}", f"{found.value:.3f} ({interval})")
    errors = [f"{r.name}: {r.error}" for r in report.runners if r.runtime == funnel_runtime and r.error]
    not_timed = [place for place in report.not_timed if place.runtime == funnel_runtime]
    failures = errors or judge(rows, wanted, not_timed=not_timed).failures
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
