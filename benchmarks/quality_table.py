"""Tables and the picture of what funnels and dropped layers cost a real model: as they are, fitted, and trained."""

import functools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tabulate import tabulate

from funnel_export.report.canvas import Palette, Panel, Picture
from funnel_export.spec.funnel import FunnelSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "quality.png"
CORPORA = {"brown": "Brown", "sotu": "speeches"}
STATES = {"delta": "as it is", "linear": "fitted", "adapted": "trained"}
STRIDED = "strided"
"""State of a trained model that serves several strides."""
LABELS = STATES | {STRIDED: "trained, S=2 to 4"}
OTHER_STRIDES = (3, 4)
"""Strides beside 2 with which trained funnels were measured."""
TRAINED = {"-kl-all": "adapted", "-kl-all-strides": STRIDED} | {
    f"-kl-all-strides S={stride}": STRIDED for stride in OTHER_STRIDES
}
"""States of the trained models that are compared with fitted ones, by the endings of their names."""


class Point(NamedTuple):
    """A model that was measured on a corpus."""

    funnel: str
    state: str
    operations: float
    """As a share of the dense model's."""
    loss: Mapping[str, float]
    """Above the dense model's."""
    found: Mapping[str, Any]


def quality(length: int) -> str:
    """Losses above the dense model's, by the operations that are left."""
    points = {corpus: list(measured(corpus, length)) for corpus in CORPORA}
    rows = []
    found = {(p.funnel, p.operations) for p in points["brown"] if p.state in STATES}
    for funnel, share in sorted(found, key=lambda each: -each[1]):
        cells = [
            _cell(next((p.loss for p in points[corpus] if (p.funnel, p.state) == (funnel, state)), None))
            for corpus in CORPORA
            for state in STATES
        ]
        rows.append((f"{funnel}", f"{share:.2f}", *cells))
    headers = ("funnel", "operations", *(f"{name}, {state}" for name in CORPORA.values() for state in STATES.values()))
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    first = points["brown"][0].found
    facts = {"device": first["device"], **first["conditions"]}
    return "\n\n".join((table, _dense(points), f"({', '.join(f'{k} {v}' for k, v in facts.items())})"))


def training() -> str:
    """What was trained, on how many tokens, and the losses on texts that were held out of the training's."""
    rows = []
    for name, report in _result("adapt").items():
        losses = report["losses"]
        dense = losses["dense"]
        closed = "–" if dense is None else f"{(losses['before'] - losses['after']) / (losses['before'] - dense):.0%}"
        values = ("–" if losses[each] is None else f"{losses[each]:.3f}" for each in ("dense", "before", "after"))
        millions = (f"{report[each] / 1e6:.1f} M" for each in ("trained_weights", "seen"))
        rows.append((name, *millions, report["steps"], *values, closed))
    headers = ("run", "trained weights", "tokens", "steps", "dense", "before", "after", "gap closed")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def trained() -> str:
    """Losses of the trained models above the original dense model's, on texts that nothing was trained on."""
    places = [(corpus, length) for length in (512, 2048) for corpus in CORPORA]
    rows = [(name, *(_cell(_trained(name, *place)) for place in places)) for name in _result("adapt")]
    headers = ("run", *(f"{CORPORA[corpus]}, {length}" for corpus, length in places))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def strides() -> str:
    """Losses of trained funnels with their own stride and with others, in rows of 512 tokens."""
    rows = [
        (f"{label}, {name}", *(_cell(_trained(name, corpus, 512, stride)) for stride in (None, *OTHER_STRIDES)))
        for corpus, label in CORPORA.items()
        for name in _result("adapt")
        if _trained(name, corpus, 512, OTHER_STRIDES[0]) is not None
    ]
    return tabulate(rows, ("", "S=2", *(f"S={s}" for s in OTHER_STRIDES)), tablefmt="github", disable_numparse=True)


@functools.cache
def _result(name: str) -> dict[str, Any]:
    """The content of a result file, which several tables read."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _trained(name: str, corpus: str, length: int, stride: int | None = None) -> Mapping[str, float] | None:
    """Loss of a trained model above the dense model's, None if it was not measured. `stride` is one beside its own."""
    model = name.replace(" ", "-") + ("" if stride is None else f" S={stride}")
    found = _result("quality")["measured"].get(f"{model}, adapted, {corpus}, {length}")
    return found and found["distance"]["loss"]  # type: ignore[no-any-return]


def picture() -> Picture:
    """Loss above dense against the operations of a prompt, a panel for each length, on Brown."""
    panels = [
        Panel(
            title=f"{length} tokens",
            alt="; ".join(f"{p.funnel} {LABELS[p.state]}: {p.loss['value']:+.3f}" for p in measured("brown", length)),
            draw=partial(_draw, list(measured("brown", length))),
        )
        for length in (512, 2048)
    ]
    return Picture(name="quality", caption="", panels=panels)


def _draw(points: list[Point], axes: "Axes", palette: Palette) -> None:
    looks = {"delta": (":", "none"), "linear": ("--", "bottom"), "adapted": ("", "full"), STRIDED: ("-", "right")}
    for kind, color, marker in (("funnel", palette["funnel"], "o"), ("dropped", palette["dense"], "s")):
        for state, (line, fill) in looks.items():
            chosen = sorted(
                (p.operations, p.loss["value"], p.loss["value"] - p.loss["low"], p.loss["high"] - p.loss["value"])
                for p in points
                if p.state == state and p.funnel.endswith("drop") == (kind == "dropped")
            )
            if not chosen:
                continue
            x, y, low, high = zip(*chosen, strict=True)
            axes.errorbar(
                x,
                y,
                (low, high),
                linestyle=line,
                marker=marker,
                fillstyle=fill,  # type: ignore[arg-type]
                color=color,
                label=f"{kind}, {LABELS[state]}",
                markersize=6,
            )
    axes.set_yscale("log")
    axes.set_ylim(0.05, 4)
    axes.set_yticks((0.1, 0.2, 0.5, 1, 2), ("0.1", "0.2", "0.5", "1", "2"))
    axes.set_xlim(0.7, 1.0)
    axes.set_xlabel("operations of a prompt, dense = 1")
    axes.set_ylabel("loss above dense, nats a token")
    axes.grid(visible=True, color=palette["grid"], linewidth=0.5)
    axes.legend(fontsize=8, loc="lower left")


def measured(corpus: str, length: int) -> Iterator[Point]:
    """The models that were measured on a corpus, in rows of a length."""
    result = _result("quality")
    for key, found in result["measured"].items():
        name, state, *place = key.split(", ")
        if state == "adapted":
            state = next((kind for ending, kind in TRAINED.items() if name.endswith(ending)), None)
        if place == [corpus, str(length)] and state is not None:
            funnel = str(FunnelSpec.from_dict(found["funnel"]))
            share = result["operations"][f"{funnel}, {length}"]
            yield Point(funnel, state, share, found["distance"]["loss"], found)


def _cell(loss: Mapping[str, float] | None) -> str:
    """A loss above that of the dense model, with its interval."""
    return "–" if loss is None else f"{loss['value']:+.3f} ({loss['low']:+.3f} to {loss['high']:+.3f})"


def _dense(points: Mapping[str, list[Point]]) -> str:
    """The dense model's losses."""
    texts = []
    for corpus, name in CORPORA.items():
        found = points[corpus][0].found
        loss, documents = found["dense"]["loss"]["value"], found["documents"]
        texts.append(f"{loss:.3f} nats on {found['scored']:,} tokens of {name} ({documents} documents)")
    return f"Dense: {', '.join(texts)}."


if __name__ == "__main__":
    PICTURE.write_bytes(picture().png())
