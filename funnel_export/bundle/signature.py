"""Inputs and outputs of single-pass graphs, with kinds and named axes."""

from dataclasses import dataclass

from funnel_export.bundle.ports import PortKind
from funnel_export.spec.choices import Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.profile import BATCH, SEQUENCE


@dataclass(frozen=True, slots=True)
class Declared:
    """A port, as declared before the graph is traced."""

    name: str
    kind: PortKind
    axes: tuple[int | str, ...]
    """Sizes, dynamic axes by name; for an output, all axes but the last."""


INPUTS = (
    Declared("input_ids", PortKind.TOKENS, (BATCH, SEQUENCE)),
    Declared("attention_mask", PortKind.MASK, (BATCH, SEQUENCE)),
)
"""Inputs of a single pass, int64, with Optimum's names."""


def output_of(spec: ExportSpec) -> Declared:
    """Output of a single pass: hidden states or logits, for all tokens, for each row's last one, or for each row."""
    tokens: tuple[int | str, ...] = (SEQUENCE,)
    if spec.task is Task.TEXT_CLASSIFICATION:
        tokens = ()
    elif spec.logits is Logits.LAST:
        tokens = (1,)
    if spec.task is Task.FEATURE_EXTRACTION:
        return Declared("last_hidden_state", PortKind.HIDDEN, (BATCH, *tokens))
    return Declared("logits", PortKind.LOGITS, (BATCH, *tokens))


def kinds_of(spec: ExportSpec) -> dict[str, PortKind]:
    """The kinds of a single pass's inputs and outputs, by name."""
    return {port.name: port.kind for port in (*INPUTS, output_of(spec))}
