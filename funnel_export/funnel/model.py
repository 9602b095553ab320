"""The forward of a funnel model: it runs some layers on slots, in one pass or in chunks with a cache."""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from funnel_export.errors import SpecError
from funnel_export.families.base import Family
from funnel_export.funnel.cache import FunnelCache
from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.maps import DropMap, SlotMaps
from funnel_export.funnel.parts import LayerPart, ModulePart, PartRunner, call_part, run_part
from funnel_export.funnel.pooling import pool
from funnel_export.funnel.queries import Queries
from funnel_export.funnel.recovery import recovery_part
from funnel_export.funnel.rows import Rows, has_values
from funnel_export.funnel.trimmed import TrimmedLayerPart
from funnel_export.funnel.windows import closed_slots, read_slots, slot_positions
from funnel_export.spec.funnel import MAPS, FunnelSpec, Segment, last_on_tokens, layer_name


@dataclass(frozen=True, slots=True)
class Plan:
    """How a patched model runs: its family, its segments and the runner of its parts."""

    family: Family
    spec: FunnelSpec | None
    """The funnel, None for the dense model."""
    segments: tuple[Segment, ...]
    run: PartRunner = call_part
    config: PreTrainedConfig | None = None
    """The model's original config, if a copy with the funnel replaced it."""
    last_only: bool = False
    """Whether only each row's last token goes through the final norm and the head; and, in a pass without a cache,
    through the last layer except for its keys and values."""
    maps: SlotMaps | DropMap | None = None
    """The maps of recovery `linear`."""


@merge_with_config_defaults  # type: ignore[untyped-decorator]
@capture_outputs  # type: ignore[untyped-decorator]
def funnel_forward(
    self: nn.Module,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> BaseModelOutputWithPast:
    """Forward of a funnel model without its head; it replaces Hugging Face's.

    Args:
        input_ids: [batch, length] tokens of this chunk. Alternatively `inputs_embeds`, [batch, length, hidden_size].
        attention_mask: [batch, columns so far], 1 for real tokens; None if there is no padding.
        position_ids: [batch, length]. They are only checked: the tokens of a row must have consecutive positions.
        past_key_values: a `FunnelCache`, or an empty cache of another class, which a `FunnelCache` replaces.
        use_cache: whether to return a cache.

    Raises:
        SpecError: if the mask, the positions, the cache or the attention implementation do not fit.
        ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    model = cast(Any, self)
    x = model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    plan = cast(Plan, model.funnel_plan)
    at_once = plan.family.is_bidirectional(model.config) or (plan.spec is not None and plan.spec.lookahead)
    cache = _cache(at_once, past_key_values, bool(use_cache))
    rows = Rows.of(_real_tokens(attention_mask, x, cache), cache.columns if cache is not None else 0)
    if position_ids is not None and has_values(position_ids):
        _check_positions(position_ids, rows)
    attention = model.layers[0].self_attn.config._attn_implementation
    if attention != "eager":
        raise SpecError("a funnel model needs eager attention", got=attention, wanted="eager")
    tokens = Resolution(Context(model, plan.family, plan.run, cache, kwargs), rows.queries, rows.keys)
    x = _run_segments(plan, tokens, x, rows)
    if cache is not None:
        cache.columns = rows.keys.shape[1]
    return BaseModelOutputWithPast(last_hidden_state=plan.family.final_norm(model)(x), past_key_values=cache)


@dataclass(frozen=True, slots=True)
class Context:
    """Values that every step of one forward needs."""

    model: Any
    """The model without its head."""
    family: Family
    run: PartRunner
    cache: FunnelCache | None
    kwargs: dict[str, Any]
    """Further keyword arguments of the caller, passed to Hugging Face's layers."""

    def layer_type_of(self, layer: int) -> str:
        """The attention of a layer."""
        return self.family.layer_type_of(self.model.config, layer)


class Resolution:
    """Runs layers on the same positions.

    `positions`, [batch, length], are those of the hidden states; `keys`, [batch, keys], those of all keys, cached ones
    included.
    """

    def __init__(self, context: Context, positions: Tensor, keys: Tensor) -> None:
        self.context = context
        self.queries = Queries(context.family, context.model, positions, lambda _: [keys], padded=True)

    def run_layers(self, x: Tensor, layers: range) -> Tensor:
        """Run the given layers on hidden states [batch, length, width]."""
        context = self.context
        for index in layers:
            kind, name = context.layer_type_of(index), layer_name(index)
            part = LayerPart(context.model.layers[index], name, context.cache, context.kwargs)
            angles = self.queries.angles(kind, x)
            operands = x, *self.queries.biases(kind, x.dtype), *angles
            x = run_part(context.run, name, part, *operands, length=x.shape[1])
        return x

    def run_trimmed(self, x: Tensor, layer: int, columns: Tensor) -> Tensor:
        """Run a layer without a cache; returns hidden states of the columns [batch, chosen]."""
        context = self.context
        kind, name = context.layer_type_of(layer), layer_name(layer)
        part = TrimmedLayerPart(context.model.layers[layer], name, None, context.kwargs)
        queries, chosen, angles = self.queries.at(columns), take_columns(x, columns), self.queries.angles(kind, x)
        operands = x, chosen, *angles, *queries.biases(kind, x.dtype), *queries.angles(kind, x)
        return run_part(context.run, name, part, *operands, length=chosen.shape[1])


def _run_segments(plan: Plan, tokens: Resolution, x: Tensor, rows: Rows) -> Tensor:
    """Run all segments; returns the hidden states of all columns, or with `last_only` of each row's last token."""
    run, last, numbers = plan.run, rows.first + rows.length - 1, rows.queries
    trimmed = last_on_tokens(plan.segments) if plan.last_only and tokens.context.cache is None else None
    for segment in plan.segments:
        if trimmed is not None and trimmed in segment.layers:
            x = tokens.run_layers(x, segment.layers[:-1])
            x, numbers = tokens.run_trimmed(x, trimmed, last), rows.length - 1
        elif segment.funnel is None:
            x = tokens.run_layers(x, segment.layers)
        elif segment.pooled:
            x = _run_on_slots(plan, tokens.context, segment, x, rows)
        elif plan.maps is not None:
            x = run_part(run, segment.recovered_name, ModulePart(plan.maps, MAPS), x, numbers, length=x.shape[1])
    return take_columns(x, last) if plan.last_only and trimmed is None else x


def _run_on_slots(plan: Plan, context: Context, segment: Segment, x: Tensor, rows: Rows) -> Tensor:
    """Pool the newly closed windows, run the segment's layers on their slots, and recover the chunk's tokens."""
    run, cache, first, spec = context.run, context.cache, rows.first, segment.funnel
    assert spec is not None
    if cache is not None and cache.open is not None:  # the open window's tokens come before the chunk's
        columns = torch.cat([cache.open, x], dim=1)
        first = first + cache.open.shape[1]
    else:
        columns = x
    closed = closed_slots(rows.before, spec.stride)
    if cache is None:
        count = spec.num_slots(x.shape[1])
    else:  # only as many as the batch needs: in most decoding steps 0
        count = int((closed_slots(rows.length, spec.stride) - closed).max())
        if cache.pooled is None:  # a first chunk of padding only still gets one slot, an absent one
            count = max(count, 1)
    slots = torch.arange(count, device=x.device)[None] + closed  # one row if all rows are the same
    operands = columns, slots, first, rows.length
    pooled = run_part(run, segment.pooled_name, partial(pool, spec=spec), *operands, length=count)
    positions = slot_positions(slots, rows.length, spec)
    keys = positions
    if cache is not None and cache.slot_positions is not None:
        keys = torch.cat([cache.slot_positions, positions], dim=1)
    middle = pooled
    if cache is None or count:
        middle = Resolution(context, positions, keys).run_layers(pooled, segment.layers)
    reads = read_slots(rows.queries, spec) - closed
    if cache is not None:
        if cache.pooled is not None and cache.middle is not None:  # tokens may read the last slot before the chunk
            pooled = torch.cat([cache.pooled, pooled], dim=1)
            middle = torch.cat([cache.middle, middle], dim=1)
            reads = reads + 1
        _remember(cache, spec, rows, columns, first, pooled, middle, keys)
    numbers = [] if plan.maps is None else [rows.queries]
    part = recovery_part(spec, plan.maps)
    return run_part(run, segment.recovered_name, part, x, pooled, middle, reads, *numbers, length=x.shape[1])


def _remember(
    cache: FunnelCache,
    spec: FunnelSpec,
    rows: Rows,
    columns: Tensor,
    first: Tensor,
    pooled: Tensor,
    middle: Tensor,
    positions: Tensor,
) -> None:
    """Store in the cache what the next chunk needs: the tokens of the open window and the last slot."""
    tail = rows.length - torch.arange(spec.stride - 1, 0, -1, device=columns.device)
    cache.open = take_columns(columns, first + tail)
    carried = 0 if cache.pooled is None else 1
    newest = closed_slots(rows.length, spec.stride) - closed_slots(rows.before, spec.stride) - 1 + carried
    cache.pooled, cache.middle = take_columns(pooled, newest), take_columns(middle, newest)
    cache.slot_positions = positions


def _cache(at_once: bool, given: Cache | None, use_cache: bool) -> FunnelCache | None:
    if at_once:
        if given is not None:
            raise SpecError(
                "a model with lookahead or bidirectional attention cannot use a cache: it needs the whole text at once",
                got=f"past_key_values of class {type(given).__name__}",
                wanted="no past_key_values",
                hint="use_cache=False",
            )
        return None
    if isinstance(given, FunnelCache):
        return given
    if given is not None and given.get_seq_length() > 0:
        raise SpecError(
            "the cache was filled by another model",
            got=f"a {type(given).__name__} with {given.get_seq_length()} tokens",
            wanted="a FunnelCache, an empty cache, or no cache",
            hint="pass the past_key_values that this model returned",
        )
    return FunnelCache() if given is not None or use_cache else None


def _check_positions(position_ids: Tensor, rows: Rows) -> None:
    """Raise `SpecError` unless each row's positions are consecutive.

    They may start at any number, because RoPE is relative. Texts packed into one row would see each other.
    """
    real = rows.queries >= 0
    begins = position_ids - rows.queries
    lowest = torch.where(real, begins, begins.max()).amin(-1)
    highest = torch.where(real, begins, begins.min()).amax(-1)
    if bool((real.any(-1) & (lowest != highest)).any()):
        raise SpecError(
            "the position_ids of a row are not consecutive",
            got=position_ids.tolist() if position_ids.numel() <= 32 else tuple(position_ids.shape),
            wanted="no position_ids, or 0, 1, 2, ... from each row's first token",
            hint="put one text in each row: texts packed into one row would see each other",
        )


def _real_tokens(attention_mask: Tensor | None, x: Tensor, cache: FunnelCache | None) -> Tensor:
    columns = x.shape[1] + (cache.columns if cache is not None else 0)
    if attention_mask is None:
        return torch.ones(x.shape[0], columns, dtype=torch.bool, device=x.device)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != (x.shape[0], columns):
        raise SpecError(
            "the attention mask has the wrong shape",
            got=tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__,
            wanted=f"[batch, columns so far] = {(x.shape[0], columns)}",
        )
    return attention_mask != 0
