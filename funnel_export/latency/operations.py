"""Counting operations: what a funnel would save if time were proportional to them."""

from dataclasses import dataclass, replace

from funnel_export.bundle.load import Bundle
from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family
from funnel_export.spec.choices import Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec, segments_of

LENGTHS = (128, 512, 2048, 8192)
"""Lengths for which the saving is predicted."""


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of one forward pass of one row; a multiply-add counts as two."""

    layers: int
    """Projections of attention and MLP, and the maps of recovery `linear`."""
    attention: int
    """Scores and weighted values of all pairs of positions, masked ones included."""
    head: int
    """Logits or classes. The final norm, pooling and recovery without maps are negligible and not counted."""

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.layers + self.attention + self.head


def count_operations(family: Family, architecture: Architecture, spec: ExportSpec, length: int) -> Operations:
    """Operations for a row of `length` tokens."""
    lengths = layer_lengths(architecture.num_hidden_layers, spec.funnel, length)
    costs = [(family.layer_cost(architecture, layer), n) for layer, n in enumerate(lengths)]
    maps = 0 if spec.funnel is None else spec.funnel.map_weights(architecture.hidden_size)
    outputs = {
        Task.FEATURE_EXTRACTION: 0,
        Task.TEXT_GENERATION: architecture.vocab_size,
        Task.TEXT_CLASSIFICATION: architecture.num_labels,
        Task.TOKEN_CLASSIFICATION: architecture.num_labels,
    }[spec.task.single_pass]
    return Operations(
        layers=sum(2 * cost.weights * n for cost, n in costs) + 2 * maps * length,
        attention=sum(2 * cost.attention * n * n for cost, n in costs),
        head=2 * architecture.hidden_size * outputs * (1 if _only_last(spec) else length),
    )


def _only_last(spec: ExportSpec) -> bool:
    """Whether the head runs on each row's last token only; a prompt that is continued needs no other."""
    return spec.logits is Logits.LAST or spec.task.has_past


def layer_lengths(num_layers: int, funnel: FunnelSpec | None, length: int) -> list[int]:
    """The number of positions that each layer processes, for a row of `length` tokens."""
    lengths = [0] * num_layers  # of dropped layers
    for segment in segments_of(funnel, num_layers):
        for layer in segment.layers:
            lengths[layer] = segment.length(length)
    return lengths


def predicted_ratio(family: Family, architecture: Architecture, spec: ExportSpec, length: int) -> float:
    """Operations of the model with a funnel over those of the dense model, for a row of `length` tokens."""
    dense = count_operations(family, architecture, replace(spec, funnel=None), length).total
    return count_operations(family, architecture, spec, length).total / dense


def predictions(bundle: Bundle) -> list[dict[str, float]]:
    """For each length, the operations of one row in GFLOP, dense and with the bundle's funnel, and their ratio."""
    rows = []
    for length in LENGTHS:
        dense, funnel = (
            count_operations(bundle.family, bundle.architecture, spec, length).total
            for spec in (replace(bundle.spec, funnel=None), bundle.spec)
        )
        row = {"length": length, "dense_gflop": dense / 1e9, "funnel_gflop": funnel / 1e9, "ratio": funnel / dense}
        rows.append(row)
    return rows
