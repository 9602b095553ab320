"""What a trial of peers means at one shape: agreement with eager float32, ratios, and what was promised of them.

Rows are those of `peers.py`. No parity, no number: a row that does not agree takes part in no ratio.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from funnel_export.latency.latency_report import Ratio, compare
from funnel_export.latency.verdict import distance

Row = dict[str, Any]

LIMITS = {"float32": 1e-4, "bfloat16": 0.1}
"""The largest error, of the largest output, at which a runner computes what eager PyTorch computes in float32."""
TARGETS = ("onnxruntime", "openvino")
PEER_LIMIT = 0.8
"""What S=2 on OpenVINO in bfloat16 may take of the best dense peer's time."""
SAVING = 0.44
"""What S=4 is to save of the dense latency, on one target at least."""


def with_agreement(rows: Sequence[Row]) -> list[Row]:
    """Each row with its `error` against eager float32 of the same model, and whether that `agrees`."""
    reference = {row["model"]: row["sample"] for row in rows if ran(row) and _kind(row) == ("eager", "float32")}
    return [row | _agreement(row, reference.get(row["model"])) if ran(row) else row for row in rows]


def _agreement(row: Row, reference: Sequence[float] | None) -> Row:
    error = math.nan if reference is None else distance(row["sample"], reference)
    # JSON has no NaN
    return {"error": None if math.isnan(error) else error, "agrees": bool(error <= LIMITS[row["dtype"]])}


def ran(row: Row) -> bool:
    """Whether it has numbers, valid or not."""
    return bool(row["state"] == "run")


def sound(rows: Iterable[Row]) -> list[Row]:
    """The rows that count."""
    return [row for row in rows if ran(row) and row["agrees"]]


def _kind(row: Row) -> tuple[str, str]:
    return row["runtime"], row["dtype"]


def ratios(rows: Sequence[Row], predicted: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each funnel over the dense model in the same runtime and dtype, beside the ratio in operations."""
    dense = {_kind(row): row for row in sound(rows) if row["model"] == "dense"}
    found = []
    for row in rows:
        if row["model"] == "dense":
            continue
        name = {key: row[key] for key in ("runtime", "dtype", "model")} | {"predicted": predicted[row["model"]]}
        other = dense.get(_kind(row))
        if other is None or not sound([row]):
            found.append(name | {"state": "not known: one of the two was not run, or DIFFERS"})
            continue
        found.append(name | {"state": "run"} | _ratio(row, other))
    return found


def _ratio(one: Row, other: Row) -> dict[str, float]:
    return compare(one["seconds"], other["seconds"]).model_dump()


def over_best_peer(rows: Sequence[Row]) -> dict[str, Any]:
    """S=2 on OpenVINO in bfloat16 over the fastest dense runner that agrees, those of this package included."""
    dense = [row for row in sound(rows) if row["model"] == "dense"]
    own = [row for row in sound(rows) if (*_kind(row), row["model"]) == ("openvino", "bfloat16", "S=2")]
    if not dense or not own:
        return {"state": "not known: one of the two was not run, or DIFFERS"}
    best = min(dense, key=lambda row: row["median_ms"])
    ratio = _ratio(own[0], best)
    return {"state": "run", "peer": best["name"], **ratio, "limit": PEER_LIMIT, "met": ratio["value"] < PEER_LIMIT}


def saved(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest saving of S=4 on a target: one less the ratio."""
    known = [r for r in found if r["state"] == "run" and r["model"] == "S=4" and r["runtime"] in TARGETS]
    if not known:
        return {"state": "not known: no target has a ratio"}
    best = min(known, key=lambda ratio: ratio["value"])
    ratio = Ratio.model_validate(best)
    value = {"value": 1 - ratio.value, "low": 1 - ratio.high, "high": 1 - ratio.low}
    target = f"{best['runtime']} {best['dtype']}"
    return {"state": "run", "target": target, **value, "limit": SAVING, "met": value["value"] >= SAVING}


def beside(ratio: Mapping[str, Any]) -> str:
    """Where the interval of a ratio lies: `under` what was predicted, `as predicted` if it holds that, or `above`."""
    if ratio["high"] < ratio["predicted"]:
        return "under"
    return "above" if ratio["low"] > ratio["predicted"] else "as predicted"


def judge(rows: Sequence[Row], predicted: Mapping[str, float]) -> dict[str, Any]:
    """All of it for one shape."""
    found = [
        ratio | {"beside": beside(ratio)} if ratio["state"] == "run" else ratio for ratio in ratios(rows, predicted)
    ]
    return {"ratios": found, "over_best_peer": over_best_peer(rows), "saved": saved(found)}
