"""The two lines of results at the top of the README: how much time a funnel saves, and what it costs."""

import json
from pathlib import Path

import quality_table
from peers_judging import TARGETS

RESULTS = Path(__file__).parent / "results"
MEASURED = ("peers", "peers_amx")
"""Results of `peers.py` on different processors."""
FUNNEL = "6:10:2"
"""The funnel of Gemma 3 270M that was trained."""
LENGTH = 512
"""Tokens of the rows on which it was measured."""


def summary() -> str:
    """A list of two items."""
    return f"- **Time.** {_time()}\n- **Quality.** {_quality()}"


def _time() -> str:
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in MEASURED]
    shapes = [shape for result in results for shape in result["shapes"]]
    values = [
        ratio["value"]
        for shape in shapes
        for ratio in shape["ratios"]
        if (ratio["model"], ratio["state"]) == ("S=2", "run") and ratio["runtime"] in TARGETS
    ]
    (funnel,) = {result["funnels"]["S=2"] for result in results}
    lengths = [shape["length"] for shape in shapes]
    return (
        f"On two CPU cores, a 12-layer Gemma2 with the funnel `{funnel}` takes {min(values):.2f} to {max(values):.2f} "
        f"of the dense model's time for prompts of {min(lengths)} to {max(lengths):,} tokens, "
        "in ONNX Runtime and OpenVINO ([measured](benchmarks/README.md#latency-beside-others))."
    )


def _quality() -> str:
    lost = {p.state: p for p in quality_table.measured("brown", LENGTH) if p.funnel == FUNNEL}
    as_it_is, fitted, trained = (f"{lost[state].loss['value']:.2f}" for state in ("delta", "linear", "adapted"))
    return (
        f"Gemma 3 270M with the funnel `{FUNNEL}` computes {lost['delta'].operations * 100:.0f} % of the dense model's "
        f"operations, and its loss on Brown is {as_it_is} nats a token higher: {fitted} after `fit`, "
        f"{trained} after training ([what a funnel costs](docs/quality.md))."
    )
