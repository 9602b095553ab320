"""Stages: the graphs of a bundle that generates text, each with some of the model's layers.

A dense model has one stage, `decoder`, and so has a model that drops layers. A model with a funnel has three: `entry`
runs on tokens, `middle` on slots, and `exit` on tokens again. Every layer that is not dropped is in one of them.
"""

from dataclasses import dataclass

from funnel_export.spec.choices import SlotPositions
from funnel_export.spec.funnel import FunnelSpec, Segment, segments_of
from funnel_export.spec.reach import reach_of

DECODER, ENTRY, MIDDLE, EXIT = "decoder", "entry", "middle", "exit"
"""Roles of the graphs."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One graph of a model that generates text."""

    role: str
    segments: tuple[Segment, ...]
    """None if it has no layers: the entry then only embeds, the exit only recovers."""
    funnel: FunnelSpec | None
    """The model's funnel, None for a dense model."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Its layers in order."""
        return tuple(index for segment in self.segments for index in segment.layers)

    @property
    def embeds(self) -> bool:
        """Whether it takes token ids; other stages take hidden states."""
        return self.role in (DECODER, ENTRY)

    @property
    def pools(self) -> bool:
        """Whether its layers run on slots, which it makes."""
        return self.role == MIDDLE

    @property
    def recovers(self) -> bool:
        """Whether it begins with the recovery."""
        return self.role == EXIT

    @property
    def ends(self) -> bool:
        """Whether it returns logits; other stages return hidden states."""
        return self.role in (DECODER, EXIT)

    @property
    def trimmed_layer(self) -> int | None:
        """Its last layer, if it returns logits; see `ExportSpec.trimmed_layer`."""
        return self.layers[-1] if self.ends and self.layers else None

    @property
    def stride(self) -> int:
        """Tokens per position of its caches."""
        return self.funnel.stride if self.pools and self.funnel is not None else 1

    @property
    def tokens_per_position(self) -> int:
        """What RoPE positions are multiplied by and sliding windows divided by: the stride, or 1 if slots count."""
        original = self.funnel is not None and self.funnel.slot_positions is SlotPositions.ORIGINAL
        return self.stride if original else 1

    def window(self, tokens: int | None) -> int | None:
        """The length in positions of a sliding window of `tokens` tokens; None if there is no window."""
        return None if tokens is None else -(-tokens // self.tokens_per_position)

    def reach(self, window: int | None, tokens: int) -> int | None:
        """How many entries of its cache a layer with this window, in positions, reads; see `reach_of`.

        `tokens` is the most that a text of the model has.
        """
        return reach_of(window, -(-tokens // self.stride))

    @property
    def pooled_name(self) -> str:
        """Name of the hidden states after pooling."""
        return Segment(MIDDLE, range(0), self.funnel).pooled_name

    @property
    def recovered_name(self) -> str:
        """Name of the hidden states after recovery."""
        return Segment(MIDDLE, range(0), self.funnel).recovered_name

    @property
    def steps(self) -> list[str]:
        """Names of the hidden states after pooling or recovery in its graph."""
        recovers = self.recovers or any(segment.mapped for segment in self.segments)
        return [self.pooled_name] * self.pools + [self.recovered_name] * recovers


def stages_of(funnel: FunnelSpec | None, num_layers: int) -> dict[str, Stage]:
    """The stages of a model by role, in the order in which they run.

    Raises:
        SpecError: if the funnel does not fit the model.
    """
    segments = segments_of(funnel, num_layers)
    if funnel is None or funnel.drop:
        return {DECODER: Stage(DECODER, segments, funnel)}
    return {
        role: Stage(role, tuple(segment for segment in segments if segment.name == role), funnel)
        for role in (ENTRY, MIDDLE, EXIT)
    }
