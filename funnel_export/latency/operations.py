"""Counting operations: what a funnel saves if time were in proportion to multiplications."""

from dataclasses import dataclass

from funnel_export.families.gemma2 import Architecture
from funnel_export.spec.choices import Logits, Task
from funnel_export.spec.funnel import FunnelSpec


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of one forward of one row; a multiplication with its addition counts as two."""

    layers: int
    """Projections of attention and MLP."""
    attention: int
    """Scores and weighted values: the whole square, as a decomposed graph computes it, masked or not."""
    head: int
    """Logits or classes; the final norm, pooling and recovery cost next to nothing and are not counted."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.attention + self.head


def count_operations(
    architecture: Architecture, task: Task, spec: FunnelSpec | None, length: int, logits: Logits = Logits.ALL
) -> Operations:
    """Operations for a row of `length` tokens.

    Per token, a layer's projections have hidden*(2*heads + 2*kv_heads)*head_dim + 3*hidden*intermediate weights; per
    pair of positions, attention multiplies 2*heads*head_dim numbers.
    """
    hidden, width = architecture.hidden_size, architecture.intermediate_size
    heads, kv_heads = architecture.num_attention_heads, architecture.num_key_value_heads
    head_dim = architecture.head_dim
    weights = hidden * 2 * (heads + kv_heads) * head_dim + 3 * hidden * width
    lengths = layer_lengths(architecture.num_hidden_layers, spec, length)
    outputs = {
        Task.FEATURE_EXTRACTION: 0,
        Task.TEXT_GENERATION: architecture.vocab_size,
        Task.TEXT_CLASSIFICATION: architecture.num_labels,
        Task.TOKEN_CLASSIFICATION: architecture.num_labels,
    }[task]
    return Operations(
        layers=sum(2 * weights * n for n in lengths),
        attention=sum(4 * heads * head_dim * n * n for n in lengths),
        head=2 * hidden * outputs * (1 if logits is Logits.LAST else length),
    )


def layer_lengths(num_layers: int, spec: FunnelSpec | None, length: int) -> list[int]:
    """How many positions each layer runs on, for a row of `length` tokens."""
    if spec is None:
        return [length] * num_layers
    middle = range(spec.pool_layer, spec.recover_layer)
    return [spec.num_slots(length) if index in middle else length for index in range(num_layers)]


def predicted_ratio(
    architecture: Architecture, task: Task, spec: FunnelSpec | None, length: int, logits: Logits = Logits.ALL
) -> float:
    """Operations of the funnelled model over those of the dense one."""
    dense = count_operations(architecture, task, None, length, logits).total
    return count_operations(architecture, task, spec, length, logits).total / dense
