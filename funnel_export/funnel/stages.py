"""The forward of a model that generates text, in stages: each is a function of tensors and becomes one graph.

A dense model has one stage, and so has a model that drops layers. A funnel has three: `entry` runs on the chunk's
tokens, `middle` on the slots whose windows the chunk closes, `exit` on the tokens again. The middle is not run for a
chunk that closes no window. Stages take any chunk length, so the same ones read a prompt, parts of a prompt, and single
tokens.

Rows are aligned: token p of a row is at index p of its caches, whatever the padding was, and a query sees the indices
up to its own. What is behind a row's tokens (the padding of a shorter row, a slot that it has not closed) is never
visible, and is overwritten later.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from funnel_export.bundle.signature import (
    CARRIED,
    CHANGE,
    HIDDEN,
    INPUT_IDS,
    LOGIT_COLUMNS,
    OPEN,
    PAST_LENGTH,
    READS,
    SLOTS,
    past_name,
)
from funnel_export.errors import CheckpointError
from funnel_export.families.base import Family
from funnel_export.funnel.earlier import Earlier, Entries
from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.maps import maps_of
from funnel_export.funnel.parts import LayerPart, ModulePart, PartRunner, call_part, run_part
from funnel_export.funnel.pooling import pool
from funnel_export.funnel.queries import Queries
from funnel_export.funnel.recovery import change_of, change_part
from funnel_export.funnel.split import SPLIT
from funnel_export.funnel.split_layers import SplitLayerPart, SplitTrimmedLayerPart
from funnel_export.spec.choices import Task
from funnel_export.spec.funnel import MAPS, layer_name
from funnel_export.spec.stages import Stage


class StageModule(nn.Module):
    """A stage of a language model as a module: takes and returns the tensors of its signature."""

    def __init__(
        self, model: Any, family: Family, stage: Stage, inputs: Sequence[str], run: PartRunner = call_part
    ) -> None:
        """Use a model without a funnel; its attention is set to split attention.

        Args:
            model: a Hugging Face language model of the family.
            family: its family.
            stage: which layers to run, and what comes before and after them.
            inputs: names of the inputs, in the order of the signature.
            run: runs the parts.
        """
        super().__init__()
        if family.is_bidirectional(model.config):
            raise CheckpointError(
                "a model with bidirectional attention cannot generate text",
                got="use_bidirectional_attention true",
                wanted="false",
                hint=f"--task {Task.FEATURE_EXTRACTION}",
            )
        self.wrapped = model
        self.family, self.stage, self.inputs, self.run = family, stage, tuple(inputs), run
        model.config._attn_implementation = SPLIT

    @property
    def base(self) -> Any:
        """The model without its head."""
        return self.family.base_of(self.wrapped)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the stage on its inputs, in their order."""
        given = dict(zip(self.inputs, tensors, strict=True))
        if self.stage.pools:
            return self._on_slots(given)
        x = self.base.embed_tokens(given[INPUT_IDS]) if self.stage.embeds else self._recovered(given)
        present: list[Tensor] = []
        if self.stage.layers:
            x, present = self._layers(x, _numbers(x, given), given)
        elif self.stage.ends:
            x = take_columns(x, given[LOGIT_COLUMNS])
        return self._logits(x) if self.stage.ends else x, *present

    def _on_slots(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Pool the windows that the chunk closes, and run the layers on their slots."""
        spec, before, slots = self.stage.funnel, given[PAST_LENGTH][:, None], given[SLOTS]
        assert spec is not None
        columns = torch.cat([given[OPEN], given[HIDDEN]], dim=1) if spec.stride > 1 else given[HIDDEN]
        operands = columns, slots, -(before - (spec.stride - 1)), before + given[HIDDEN].shape[1]
        part = partial(pool, spec=spec)
        pooled = run_part(self.run, self.stage.pooled_name, part, *operands, length=slots.shape[1])
        x, present = self._layers(pooled, slots, given)
        return torch.cat([given[CARRIED], change_of(pooled, x, spec)], dim=1), *present

    def _recovered(self, given: Mapping[str, Tensor]) -> Tensor:
        """The tokens' hidden states after the recovery."""
        assert self.stage.funnel is not None
        x, maps = given[HIDDEN], maps_of(self.base)
        operands = [x, given[CHANGE], given[READS]] + ([_numbers(x, given)] if maps is not None else [])
        return run_part(
            self.run, self.stage.recovered_name, change_part(self.stage.funnel, maps), *operands, length=x.shape[1]
        )

    def _mapped(self, x: Tensor, numbers: Tensor) -> Tensor:
        """The tokens' hidden states after the map that replaces dropped layers."""
        maps = maps_of(self.base)
        assert maps is not None
        return run_part(self.run, self.stage.recovered_name, ModulePart(maps, MAPS), x, numbers, length=x.shape[1])

    def _layers(self, x: Tensor, positions: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run the layers at positions [batch, length]; returns hidden states, and new keys and values.

        A stage that ends the model returns hidden states of the columns whose logits are wanted.
        """
        family, base = self.family, self.base
        earlier = Earlier(positions[:, :1], given[past_name(self.stage.layers[0], "key")])

        def within(window: int | None) -> Entries:
            return earlier.within(self.stage.reach(window, base.config.max_position_embeddings))

        def keys(window: int | None) -> Sequence[Tensor]:
            return positions, within(window).positions

        every = Queries(family, base, positions, keys, tokens_per_position=self.stage.tokens_per_position)
        queries, present = every, []
        for segment in self.stage.segments:
            for index in segment.layers:
                kind, layer, name = family.layer_type_of(base.config, index), base.layers[index], layer_name(index)
                seen = within(queries.window_of(kind))
                past = [seen.of(given[past_name(index, which)]) for which in ("key", "value")]
                shape = past[0].shape[0], past[0].shape[1], x.shape[1], past[0].shape[3]
                part: LayerPart = SplitLayerPart(layer, name)
                operands, angles = [x], queries.angles(kind, x)
                if index == self.stage.trimmed_layer:
                    part, columns = SplitTrimmedLayerPart(layer, name), given[LOGIT_COLUMNS]
                    queries, chosen = every.at(columns), take_columns(x, columns)
                    operands, angles, x = [x, chosen, *angles], queries.angles(kind, x), chosen
                operands += [*past, *queries.biases(kind, x.dtype), *angles]
                x, *new = self.run(name, part, *operands, shapes=[tuple(x.shape), shape, shape])
                present += new
            if segment.mapped:
                x = self._mapped(x, queries.positions)
        return x, present

    def _logits(self, x: Tensor) -> Tensor:
        """The final norm and Hugging Face's own head, for hidden states [batch, columns, width]."""
        base = self.base
        normed = self.family.final_norm(base)(x)
        base.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=normed)
        try:
            logits: Tensor = self.wrapped(inputs_embeds=x, use_cache=False).logits
        finally:
            del base.forward
        return logits


def _numbers(x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Numbers of a chunk's tokens in their rows, [batch, length]."""
    columns = torch.arange(x.shape[1], device=x.device)[None]
    return given[PAST_LENGTH][:, None] + columns
