"""Inputs and outputs of graphs, with kinds and named axes: what an export declares and a loader expects."""

from collections.abc import Iterable
from dataclasses import dataclass

from funnel_export.bundle.manifest import MODEL
from funnel_export.bundle.ports import PortKind
from funnel_export.families.architecture import Architecture
from funnel_export.spec.choices import Dtype, Logits, Recovery, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.profile import BATCH, SEQUENCE
from funnel_export.spec.stages import Stage, stages_of

INT64 = "int64"
PAST_SEQUENCE, SLOTS, PAST_SLOTS = "past_sequence_length", "slots", "past_slots"
"""Axes of caches: earlier tokens (with Optimum's name), the slots that a chunk closes, earlier slots."""
CHANGES, NUM_LOGITS = "changes", "num_logits"
"""Axes: the carried change and those of the chunk's slots; the columns for which logits are computed."""
INPUT_IDS, PAST_LENGTH, LOGIT_COLUMNS = "input_ids", "past_length", "logit_columns"
HIDDEN, OPEN, CARRIED, CHANGE, READS = "hidden", "open", "carried", "changes", "reads"
LOGITS = "logits"
"""Names of inputs and outputs."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A port, as declared before the graph is traced."""

    name: str
    kind: PortKind
    axes: tuple[int | str, ...]
    """Sizes, dynamic axes by name."""
    dtype: str = INT64


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a graph, in order."""

    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]

    @property
    def ports(self) -> tuple[Declared, ...]:
        """Inputs, then outputs."""
        return (*self.inputs, *self.outputs)

    @property
    def kinds(self) -> dict[str, PortKind]:
        """Kinds of inputs and outputs by name."""
        return {port.name: port.kind for port in self.ports}


INPUTS = (
    Declared(INPUT_IDS, PortKind.TOKENS, (BATCH, SEQUENCE)),
    Declared("attention_mask", PortKind.MASK, (BATCH, SEQUENCE)),
)
"""Inputs of a single pass, int64, with Optimum's names."""


def output_of(spec: ExportSpec, architecture: Architecture) -> Declared:
    """Output of a single pass: hidden states or logits, for all tokens, for each row's last one, or for each row."""
    tokens: tuple[int | str, ...] = (SEQUENCE,)
    if spec.task is Task.TEXT_CLASSIFICATION:
        tokens = ()
    elif spec.logits is Logits.LAST:
        tokens = (1,)
    if spec.task is Task.FEATURE_EXTRACTION:
        return Declared("last_hidden_state", PortKind.HIDDEN, (BATCH, *tokens, architecture.hidden_size), spec.dtype)
    width = architecture.vocab_size if spec.task.generates else architecture.num_labels
    return Declared(LOGITS, PortKind.LOGITS, (BATCH, *tokens, width), spec.dtype)


def signatures_of(spec: ExportSpec, architecture: Architecture) -> dict[str, Signature]:
    """The signature of every graph of a bundle, by role."""
    if not spec.task.has_past:
        return {MODEL: Signature(INPUTS, (output_of(spec, architecture),))}
    stages = stages_of(spec.funnel, architecture.num_hidden_layers)
    return {role: _stage(stage, spec.dtype, architecture) for role, stage in stages.items()}


def past_name(layer: int, which: str) -> str:
    """Name of the input with a layer's earlier keys or values (`which` is key or value); Optimum's."""
    return f"past_key_values.{layer}.{which}"


def present_name(layer: int, which: str) -> str:
    """Name of the output with a layer's new keys or values; Optimum's, although it has the chunk's only."""
    return f"present.{layer}.{which}"


def _stage(stage: Stage, dtype: Dtype, architecture: Architecture) -> Signature:
    width, change = architecture.hidden_size, _change_dtype(stage, dtype)
    hidden = Declared(HIDDEN, PortKind.STATE, (BATCH, SEQUENCE, width), dtype)
    changes = Declared(CHANGE, PortKind.STATE, (BATCH, CHANGES, width), change)
    length = Declared(PAST_LENGTH, PortKind.INDEX, (BATCH,))
    past_axis, new_axis = (PAST_SLOTS, SLOTS) if stage.pools else (PAST_SEQUENCE, SEQUENCE)
    past = tuple(_caches(stage, dtype, architecture, PortKind.PAST, past_axis))
    present = tuple(_caches(stage, dtype, architecture, PortKind.PRESENT, new_axis))
    if stage.pools:
        opened = Declared(OPEN, PortKind.STATE, (BATCH, stage.stride - 1, width), dtype)
        carried = Declared(CARRIED, PortKind.STATE, (BATCH, 1, width), change)
        slots = Declared(SLOTS, PortKind.INDEX, (BATCH, SLOTS))
        begin: tuple[Declared, ...] = (opened, hidden) if stage.stride > 1 else (hidden,)
        return Signature((*begin, carried, length, slots, *past), (changes, *present))
    begin = (hidden, changes, Declared(READS, PortKind.INDEX, (BATCH, SEQUENCE)))
    if stage.embeds:
        begin = (Declared(INPUT_IDS, PortKind.TOKENS, (BATCH, SEQUENCE)),)
    end = (Declared(LOGIT_COLUMNS, PortKind.INDEX, (BATCH, NUM_LOGITS)),) if stage.ends else ()
    logits = Declared(LOGITS, PortKind.LOGITS, (BATCH, NUM_LOGITS, architecture.vocab_size), dtype)
    linear = stage.recovers and stage.funnel is not None and stage.funnel.recovery is Recovery.LINEAR
    inputs = (*begin, *((length,) if stage.layers or linear else ()), *end, *past)
    return Signature(inputs, (logits if stage.ends else hidden, *present))


def _caches(stage: Stage, dtype: Dtype, architecture: Architecture, kind: PortKind, axis: str) -> Iterable[Declared]:
    name = past_name if kind is PortKind.PAST else present_name
    shape = BATCH, architecture.num_key_value_heads, axis, architecture.head_dim
    for layer in stage.layers:
        for which in ("key", "value"):
            yield Declared(name(layer, which), kind, shape, dtype)


def _change_dtype(stage: Stage, dtype: Dtype) -> str:
    """The dtype of changes: a difference is at least float32, as in a single pass."""
    difference = stage.funnel is not None and stage.funnel.recovery.takes_change
    return Dtype.FLOAT32 if difference else dtype
