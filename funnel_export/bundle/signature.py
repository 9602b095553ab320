"""What graphs are called with: the ports of a single pass, by kind and with named axes."""

from dataclasses import dataclass

from funnel_export.bundle.ports import PortKind
from funnel_export.spec.choices import Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.profile import BATCH, SEQUENCE


@dataclass(frozen=True, slots=True)
class Declared:
    """A port as it is declared before a graph is traced."""

    name: str
    kind: PortKind
    axes: tuple[int | str, ...]
    """Sizes, dynamic ones by name; of an output, all but the last."""


INPUTS = (
    Declared("input_ids", PortKind.TOKENS, (BATCH, SEQUENCE)),
    Declared("attention_mask", PortKind.MASK, (BATCH, SEQUENCE)),
)
"""What a single pass takes, as Optimum names it; both are int64."""


def output_of(spec: ExportSpec) -> Declared:
    """What a single pass gives: hidden states or logits, for all tokens, the last ones, or each row as a whole."""
    tokens: tuple[int | str, ...] = (SEQUENCE,)
    if spec.task is Task.TEXT_CLASSIFICATION:
        tokens = ()
    elif spec.logits is Logits.LAST:
        tokens = (1,)
    if spec.task is Task.FEATURE_EXTRACTION:
        return Declared("last_hidden_state", PortKind.HIDDEN, (BATCH, *tokens))
    return Declared("logits", PortKind.LOGITS, (BATCH, *tokens))


def kinds_of(spec: ExportSpec) -> dict[str, PortKind]:
    """The kinds of the ports of a single pass, by name."""
    return {port.name: port.kind for port in (*INPUTS, output_of(spec))}
