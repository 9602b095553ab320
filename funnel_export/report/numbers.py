"""Numbers with their units, in as many digits as they deserve."""

import math

from funnel_export.latency.latency_report import Latency, Ratio


def ms(value: float) -> str:
    """Milliseconds in three digits."""
    return f"{value:,.{_decimals(value)}f}"


def latency(found: Latency) -> str:
    """For example `12.3 (12.1–12.6)`, all in the median's digits."""
    return _with_interval(found.median_ms, found.low_ms, found.high_ms, _decimals(found.median_ms))


def ratio(found: Ratio) -> str:
    """For example `0.741 (0.735–0.748)`."""
    return _with_interval(found.value, found.low, found.high, 3)


def times(found: Ratio) -> str:
    """How many times as fast: `1.35 (1.33–1.37)`."""
    return _with_interval(found.value, found.low, found.high, 2)


def rate(value: float) -> str:
    """A count in a second, in three digits: `12,300`."""
    if not value > 0 or math.isinf(value):
        return "–"
    step = 10 ** max(0, math.floor(math.log10(value)) - 2)
    return f"{round(value / step) * step:,}"


def size(count: int | None) -> str:
    """Bytes as a person says them; `–` where there are none to tell."""
    if count is None:
        return "–"
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.{_decimals(value)}f} {units[0]}"


def seconds(value: float | None) -> str:
    """Seconds, `–` where nobody took the time."""
    return "–" if value is None else f"{value:.{min(2, _decimals(value))}f} s"


def error(value: float) -> str:
    """A relative error, in two digits."""
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def share(value: float | None) -> str:
    """A share in percent; less than all never reads as all."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return "100 %" if value == 1 else f"{math.floor(value * 1000) / 10:.1f} %"


def _with_interval(value: float, low: float, high: float, decimals: int) -> str:
    return f"{value:,.{decimals}f} ({low:,.{decimals}f}–{high:,.{decimals}f})"


def _decimals(value: float, digits: int = 3) -> int:
    """Places after the point for so many digits in all, at most three places; integers stay whole."""
    if not math.isfinite(value) or value == 0:
        return 1
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9996 is shown as 1.00
    return min(3, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))
