"""The tables of `peers.py`'s result: times by shape, ratios beside those predicted, and whether promises were met."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from peers_judging import TARGETS
from tabulate import tabulate

Result = Mapping[str, Any]


def render(result: Result) -> str:
    """Times, then ratios, then what was promised."""
    shapes = result["shapes"]
    return "\n\n".join(
        [
            "Milliseconds a call: the median, and its 95 % interval.\n\n" + _times(shapes),
            "Funnel over dense, in the same runtime and dtype: measured (95 % interval) of predicted.\n\n"
            + _ratios(shapes)
            + f"\n\n{_count(shapes)}",
            f"Against the best dense runner, and what S=4 ({result['funnels']['S=4']}) saves:\n\n" + _promises(shapes),
        ]
    )


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _name(shape: Result) -> str:
    how = "" if shape["together"] else "*"
    return f"{shape['batch']}x{shape['length']}{how}"


def _times(shapes: Sequence[Result]) -> str:
    names = [row["name"] for row in shapes[0]["rows"]]
    columns = [{row["name"]: row for row in shape["rows"]} for shape in shapes]
    rows = []
    for name in names:
        found = [column[name] for column in columns]
        rows.append((name, *_facts([row for row in found if row["state"] == "run"]), *map(_time, found)))
    headers = ("", "precision", "largest error", "load", "peak memory", *map(_name, shapes))
    return _table(rows, headers)


def _facts(ran: Sequence[Result]) -> tuple[str, ...]:
    """Precision as the runtime names it, and the worst over all shapes."""
    if not ran:
        return ("-",) * 4
    errors = [row["error"] for row in ran]
    worst = "not compared" if None in errors else f"{max(errors):.0e}"
    differs = "" if all(row["agrees"] for row in ran) else ": DIFFERS"
    load = f"{max(row['load_seconds'] for row in ran):.1f} s"
    return ran[0]["precision"], worst + differs, load, f"{max(row['host_bytes'] for row in ran) / 1e9:.2f} GB"


def _time(row: Result) -> str:
    if row["state"] != "run":
        return row["state"].partition(":")[0]
    if not row["agrees"]:
        return f"({row['median_ms']:.0f}) DIFFERS"
    return f"{row['median_ms']:.0f} ({row['low_ms']:.0f} to {row['high_ms']:.0f})"


def _ratios(shapes: Sequence[Result]) -> str:
    rows = []
    for index, first in enumerate(shapes[0]["ratios"]):
        cells = [_ratio(shape["ratios"][index]) for shape in shapes]
        rows.append((f"{first['runtime']} {first['dtype']}, {first['model']}", *cells))
    return _table(rows, ("", *map(_name, shapes)))


def _ratio(ratio: Result) -> str:
    if ratio["state"] != "run":
        return f"{ratio['state'].partition(':')[0]} of {ratio['predicted']:.2f}"
    mark = {"under": ", under", "as predicted": "", "above": ", ABOVE"}[ratio["beside"]]
    return f"{_interval(ratio)} of {ratio['predicted']:.2f}{mark}"


def _count(shapes: Sequence[Result]) -> str:
    """How the ratios on targets lie, beside what was predicted."""
    known = [r for shape in shapes for r in shape["ratios"] if r["state"] == "run" and r["runtime"] in TARGETS]
    count = Counter(ratio["beside"] for ratio in known)
    at_most = sum(ratio["value"] <= ratio["predicted"] for ratio in known)
    return (
        f"Of the {len(known)} on ONNX Runtime and OpenVINO, {at_most} are at most what was predicted; by their "
        f"intervals {count['under']} lie under it, {count['as predicted']} hold it, and {count['above']} lie above."
    )


def _interval(found: Result, digits: int = 2) -> str:
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _met(found: Result) -> str:
    return ": met" if found["met"] else ": MISSED"


def _promises(shapes: Sequence[Result]) -> str:
    rows = []
    for shape in shapes:
        peer, saved = shape["over_best_peer"], shape["saved"]
        over, at_four = peer["state"], saved["state"]
        if over == "run":
            over = f"{_interval(peer, digits=3)} of {peer['peer']}, under {peer['limit']:.2f}{_met(peer)}"
        if at_four == "run":
            at_four = f"{_interval(saved)} on {saved['target']}, at least {saved['limit']:.2f}{_met(saved)}"
        rows.append((_name(shape), str(shape["rounds"]), over, at_four))
    return _table(rows, ("", "rounds", "S=2 on OpenVINO bfloat16", "saved by S=4, on the best target"))
