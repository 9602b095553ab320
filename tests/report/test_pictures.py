"""Pictures of any measured shapes, drawn without warnings, and the format of numbers."""

from itertools import pairwise

import pytest
from exported import Recipe
from latencies import make_latency, make_row

from funnel_export import FunnelSpec
from funnel_export.report import numbers
from funnel_export.report.drawing import funnel_bars
from funnel_export.report.funnel_panel import draw_funnel
from funnel_export.report.latency_panels import draw_latency, draw_ratio
from funnel_export.report.palette import DARK, LIGHT, SENTINELS
from funnel_export.report.parity_panels import positions
from funnel_export.spec.funnel import segments_of

pytestmark = pytest.mark.pictures


@pytest.mark.parametrize(
    "shapes", [[(1, 1)], [(1, 512), (2, 512)], [(b, 2**n) for b in (1, 2, 4, 8) for n in range(14)]], ids=len
)
def test_latency_pictures_of_any_shapes(shapes: list[tuple[int, int]]) -> None:
    rows = [make_row("a $runtime^", batch, length, dense=1e-3 * batch * length) for batch, length in shapes]
    report = make_latency(Recipe().bundle(), rows=rows)
    for picture in (draw_latency(report), draw_ratio(report)):
        (svg,) = picture.svgs()
        assert not any(colour in svg for colour in SENTINELS.values())
        assert "var(--dense)" in svg or picture.name == "ratio"
        assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("spec", "bars", "links"),
    [
        (FunnelSpec.parse("6:20:2"), ["entry", "middle", "exit"], 2),
        (FunnelSpec.parse("0:20:4"), ["middle", "exit"], 1),
        (FunnelSpec.parse("0:26:4", lookahead=True), ["middle"], 0),
        (FunnelSpec.parse("6:26:1024"), ["entry", "middle"], 1),
        (None, ["dense"], 0),
    ],
)
def test_funnel_pictures(spec: FunnelSpec | None, bars: list[str], links: int) -> None:
    segments = segments_of(spec, 26)
    found = funnel_bars(segments)
    assert [bar.name for bar in found] == bars
    assert sum(bool(one.after or other.before) for one, other in pairwise(found)) == links
    assert draw_funnel(segments).png()


def test_positions_of_boundaries() -> None:
    names = ["layers.0", "funnel.pooled", "layers.1", "layers.2", "funnel.recovered", "layers.3"]
    assert positions(names) == [0, 0.5, 1, 2, 2.5, 3]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_enough_contrast(theme: dict[str, str]) -> None:
    for name in ("ink", "muted", "good", "bad", "funnel", "dense", "predicted"):
        for ground in ("page", "card"):
            assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)


def test_numbers_have_sensible_digits() -> None:
    assert [numbers.ms(value) for value in (0.01234, 1.2345, 12.345, 123.45, 12345.6)] == [
        *("0.012", "1.23", "12.3", "123", "12,346")
    ]
    assert [numbers.size(count) for count in (None, 0, 999, 1000, 999_600, 5_210_000_000)] == [
        *("–", "0 B", "999 B", "1.00 kB", "1.00 MB", "5.21 GB")
    ]
    assert [numbers.rate(value) for value in (0.5, 12345.6, 987_654)] == ["0", "12,300", "988,000"]
    assert [numbers.share(value) for value in (None, 1.0, 0.9999, 0.5)] == ["–", "100 %", "99.9 %", "50.0 %"]
    assert [numbers.error(value) for value in (1.23e-6, float("nan"))] == ["1.2e-06", "not finite"]
    assert [numbers.seconds(value) for value in (None, 0.4209, 12.34, 123.4)] == ["–", "0.42 s", "12.3 s", "123 s"]
