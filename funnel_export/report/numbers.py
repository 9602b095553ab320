"""Numbers as text, with units and a suitable number of digits."""

import math

from funnel_export.latency.latency_report import Latency, Ratio


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{value:,.{_decimals(value)}f}"


def latency(found: Latency) -> str:
    """For example `12.3 (12.1–12.6)`, with as many decimals as the median."""
    return _with_interval(found.median_ms, found.low_ms, found.high_ms, _decimals(found.median_ms))


def ratio(found: Ratio) -> str:
    """For example `0.741 (0.735–0.748)`."""
    return _with_interval(found.value, found.low, found.high, 3)


def times(found: Ratio) -> str:
    """How many times as fast: `1.35 (1.33–1.37)`."""
    return _with_interval(found.value, found.low, found.high, 2)


def rate(value: float) -> str:
    """A count per second with three significant digits: `12,300`."""
    if not value > 0 or math.isinf(value):
        return "–"
    step = 10 ** max(0, math.floor(math.log10(value)) - 2)
    return f"{round(value / step) * step:,}"


def size(count: int | None) -> str:
    """Bytes with a decimal unit, such as `1.23 GB`; `–` if unknown."""
    if count is None:
        return "–"
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.{_decimals(value)}f} {units[0]}"


def seconds(value: float | None) -> str:
    """Seconds; `–` if unknown."""
    return "–" if value is None else f"{value:.{min(2, _decimals(value))}f} s"


def error(value: float) -> str:
    """A relative error with two significant digits."""
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def share(value: float | None) -> str:
    """A share in percent, rounded down, so that only 1 is shown as 100 %."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return "100 %" if value == 1 else f"{math.floor(value * 1000) / 10:.1f} %"


def with_interval(value: float, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """A measure such as `3.5401 (3.4713 to 3.6120)`, with four decimals, fewer from 10 on; differences have a sign."""
    decimals = max(0, 4 - math.floor(math.log10(max(1.0, abs(value)))))
    sign = "+" if signed else ""
    ends = "" if low is None or high is None else f" ({low:{sign}z,.{decimals}f} to {high:{sign}z,.{decimals}f})"
    return f"{value:{sign}z,.{decimals}f}{ends}"


def _with_interval(value: float, low: float, high: float, decimals: int) -> str:
    return f"{value:,.{decimals}f} ({low:,.{decimals}f}–{high:,.{decimals}f})"


def _decimals(value: float, digits: int = 3) -> int:
    """Decimals for this number of significant digits, at most three."""
    if not math.isfinite(value) or value == 0:
        return 1
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9996 is shown as 1.00
    return min(3, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))
