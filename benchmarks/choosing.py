"""The table of docs/choosing.md: what operations predict for funnels of Gemma2's three sizes."""

from sparse import SHAPES
from tabulate import tabulate

from funnel_export import FunnelSpec
from funnel_export.families.gemma2 import GEMMA2
from funnel_export.latency.operations import predicted_ratio
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec

FUNNELS = {
    "2B": {"small": "9:13:2", "medium": "9:17:2", "half": "6:19:2", "half, S=4": "6:19:4"},
    "9B": {"small": "14:20:2", "medium": "14:28:2", "half": "10:31:2", "half, S=4": "10:31:4"},
    "27B": {"small": "15:22:2", "medium": "15:31:2", "half": "11:34:2", "half, S=4": "11:34:4"},
}
"""Funnels to begin with, by the size of a Gemma2."""


def choosing() -> str:
    """What operations predict for funnels of Gemma2's three sizes."""
    lengths = (512, 2048, 8192)
    rows = []
    for size, funnels in FUNNELS.items():
        architecture = GEMMA2.schema.of(SHAPES[size])
        for kind, funnel in funnels.items():
            spec = ExportSpec(
                task=Task.TEXT_GENERATION,
                dtype=Dtype.BFLOAT16,
                funnel=FunnelSpec.parse(funnel),
                logits=Logits.LAST,
            )
            ratios = (f"{predicted_ratio(GEMMA2, architecture, spec, length):.2f}" for length in lengths)
            rows.append((f"{size}, {architecture.num_hidden_layers} layers", kind, f"`{funnel}`", *ratios))
    headers = ("Gemma2", "funnel", "P:R:S", *(f"{length:,} tokens" for length in lengths))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
