"""All pictures of a report."""

from funnel_export.bundle.load import Bundle
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.report.canvas import Picture
from funnel_export.report.funnel_panel import draw_funnel
from funnel_export.report.latency_panels import draw_latency, draw_ratio
from funnel_export.report.parity_panels import draw_boundaries, draw_ranges
from funnel_export.verify.parity_report import ParityReport


def draw_all(bundle: Bundle, parity: ParityReport | None, latency: LatencyReport | None) -> dict[str, Picture]:
    """The pictures for the available results, by name."""
    pictures = [draw_funnel(bundle.segments)]
    if latency is not None and latency.rows:
        pictures += [draw_latency(latency), draw_ratio(latency)]
    found = () if parity is None else (draw_boundaries(parity), draw_ranges(parity))
    pictures += [picture for picture in found if picture is not None]
    return {picture.name: picture for picture in pictures}
