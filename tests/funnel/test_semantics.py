"""What a funnel computes, compared with the oracle, with dense Hugging Face models, and with itself."""

import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ALL_CLASSES, base_of, random_rows, tiny_config, tiny_model
from properties import (
    FLOAT64_LIMIT,
    alone,
    assert_close,
    base_weights,
    check_causal,
    check_chunks,
    check_horizon,
    check_padding,
    check_reach,
    check_rows,
    forward_of,
    funnelled,
    lengths_around,
    oracle_of,
    specs,
)
from tiers import LONG, slow, slow_but
from transformers import Gemma2ForCausalLM, Gemma2ForSequenceClassification, Gemma2Model, PreTrainedModel

from funnel_export import FunnelSpec
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions

pytestmark = pytest.mark.usefixtures("exact")

LAYERS = 4
WINDOW = tiny_config().sliding_window
FUNNELS = [(0, LAYERS), (0, 2), (1, 3), (2, LAYERS)]
"""Pooled embeddings, recovery before the final norm, and both ends inside."""
WAYS = list(itertools.product(Pooling, Recovery, SlotPositions))
FEW = list(zip(Pooling, Recovery, itertools.cycle(SlotPositions), strict=False))
"""Each of them at least once."""
SOME_SLOW = [way if way in (*FEW, *WAYS[::5]) else slow(*way) for way in WAYS]
"""All of them, most of them slow."""
PER_TOKEN = [cls for cls in ALL_CLASSES if cls is not Gemma2ForSequenceClassification]
CLASSES_AND_LOOKAHEAD = [(cls, False) for cls in ALL_CLASSES] + [
    (cls, True) for cls in ALL_CLASSES if cls is not Gemma2ForCausalLM
]
CHUNKS = ((1, 2), (2, 1), (2, 5), (3, 1), (3, 2), (4, 5))
"""Strides and chunks of every run: within a window, over one end of a window and over several."""
seeds = st.integers(0, 99)


@pytest.mark.parametrize("cls", ALL_CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_oracle_without_funnel_is_hugging_face(cls: type[PreTrainedModel], tied: bool) -> None:
    model = tiny_model(cls, tie_word_embeddings=tied)
    check_rows(forward_of(model), oracle_of(model, None), random_rows([1, 2, WINDOW, 3 * WINDOW]))


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize(("pooling", "recovery", "positions"), SOME_SLOW)
def test_equals_oracle(pooling: Pooling, recovery: Recovery, positions: SlotPositions, lookahead: bool) -> None:
    ways = {"pooling": pooling, "recovery": recovery, "slot_positions": positions, "lookahead": lookahead}
    spec = FunnelSpec(pool_layer=1, recover_layer=3, stride=3, **ways)
    model = funnelled(Gemma2Model, spec)
    check_rows(forward_of(model), oracle_of(model, spec), random_rows(lengths_around(3)))


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("positions", SlotPositions)
def test_every_layer_equals_the_oracles(positions: SlotPositions, lookahead: bool) -> None:
    spec = FunnelSpec(pool_layer=1, recover_layer=3, stride=3, slot_positions=positions, lookahead=lookahead)
    model, [row] = funnelled(Gemma2Model, spec), random_rows([15])
    outputs: list[torch.Tensor] = []
    for layer in base_of(model).layers:
        layer.register_forward_hook(lambda *call: outputs.append(call[-1][0]))
    alone(forward_of(model))(row)
    wants = oracle.trace(base_weights(model), model.config.to_dict(), oracle.Funnel(**spec.to_dict()), row).layers
    assert [len(want) for want in wants] == [15, 6 if lookahead else 5, 6 if lookahead else 5, 15]
    for index, (got, want) in enumerate(zip(outputs, wants, strict=True)):
        assert_close(got, torch.from_numpy(want), FLOAT64_LIMIT, f"layer {index}")


@pytest.mark.parametrize("cls", ALL_CLASSES)
@given(data=st.data(), seed=seeds, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3))
def test_any_funnel_equals_oracle(
    cls: type[PreTrainedModel], data: st.DataObject, seed: int, lengths: list[int]
) -> None:
    layers = data.draw(st.integers(1, 5))
    spec = data.draw(specs(layers, lookahead=st.just(False) if cls is Gemma2ForCausalLM else None))
    overrides = {"num_hidden_layers": layers, "sliding_window": data.draw(st.integers(1, 8))}
    model = funnelled(cls, spec, seed, tie_word_embeddings=data.draw(st.booleans()), **overrides)
    check_rows(forward_of(model), oracle_of(model, spec), random_rows(lengths, seed))


@pytest.mark.parametrize("recovery", [Recovery.DELTA, Recovery.REPLACE])
@pytest.mark.parametrize(
    ("cls", "pool_layer", "recover_layer"),
    [
        pytest.param(cls, *funnel, marks=[] if cls is Gemma2Model or funnel == FUNNELS[0] else LONG)
        for cls in ALL_CLASSES
        for funnel in FUNNELS
    ],
)
def test_stride_one_is_dense(
    cls: type[PreTrainedModel], recovery: Recovery, pool_layer: int, recover_layer: int
) -> None:
    rows = random_rows([1, 3 * WINDOW])
    outputs = {len(row): alone(forward_of(tiny_model(cls)))(row) for row in rows}
    for pooling, positions in itertools.product(Pooling, SlotPositions):
        lookahead = pooling in (Pooling.MEAN, Pooling.LAST) and cls is not Gemma2ForCausalLM
        ways = {"pooling": pooling, "recovery": recovery, "slot_positions": positions, "lookahead": lookahead}
        model = funnelled(cls, FunnelSpec(pool_layer=pool_layer, recover_layer=recover_layer, stride=1, **ways))
        check_rows(forward_of(model), lambda row: outputs[len(row)], rows)


@pytest.mark.parametrize("cls", slow_but((Gemma2Model,), PER_TOKEN))
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_causal(cls: type[PreTrainedModel], stride: int) -> None:
    for pooling, (pool_layer, recover_layer) in zip(Pooling, FUNNELS, strict=True):
        spec = FunnelSpec(pool_layer=pool_layer, recover_layer=recover_layer, stride=stride, pooling=pooling)
        check_horizon(forward_of(funnelled(cls, spec)), random_rows([2 * stride + 2])[0], later_tokens=0)


@given(spec=specs(LAYERS, lookahead=st.just(False)), length=st.integers(1, 16), seed=seeds)
def test_any_causal_funnel_is_causal(spec: FunnelSpec, length: int, seed: int) -> None:
    check_causal(forward_of(funnelled(Gemma2Model, spec, seed)), random_rows([length], seed)[0])


@pytest.mark.parametrize("stride", slow_but((1, 3), (1, 2, 3, 4)))
@pytest.mark.parametrize(("recovery", "positions"), list(itertools.product(Recovery, SlotPositions)))
def test_lookahead_sees_the_rest_of_its_window(stride: int, recovery: Recovery, positions: SlotPositions) -> None:
    spec = FunnelSpec(
        pool_layer=1, recover_layer=3, stride=stride, recovery=recovery, slot_positions=positions, lookahead=True
    )
    check_horizon(forward_of(funnelled(Gemma2Model, spec)), random_rows([2 * stride + 2])[0], later_tokens=stride - 1)


@pytest.mark.parametrize(("positions", "first_seen"), [(SlotPositions.ORIGINAL, 5), (SlotPositions.COMPACT, 1)])
def test_sliding_window_counts_tokens_unless_compact(positions: SlotPositions, first_seen: int) -> None:
    """At stride 2 the slot of tokens {7, 8} and a window of 4: back to token 5, or back to slot 1, which is {1, 2}."""
    spec = FunnelSpec(pool_layer=0, recover_layer=1, stride=2, recovery=Recovery.REPLACE, slot_positions=positions)
    layers = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "sliding_window": 4}
    windows = oracle.list_windows(10, 2, lookahead=False)
    at = [tokens[-1] if positions is SlotPositions.ORIGINAL else j for j, tokens in enumerate(windows)]

    def sees(p: int, q: int) -> bool:
        return any(q in windows[k] and at[k] > at[p // 2] - 4 for k in range(p // 2 + 1))

    assert [q for q in range(10) if sees(8, q)] == list(range(first_seen, 9))
    check_reach(forward_of(funnelled(Gemma2Model, spec, **layers)), random_rows([10])[0], sees)


@pytest.mark.parametrize(
    ("cls", "lookahead", "way"),
    [
        *((Gemma2Model, ahead, way) for ahead in (False, True) for way in WAYS[::3]),
        *(
            pytest.param(cls, ahead, way, marks=[] if way in FEW[::2] else LONG)
            for cls, ahead in CLASSES_AND_LOOKAHEAD
            if cls is not Gemma2Model
            for way in FEW
        ),
    ],
)
def test_row_is_the_same_everywhere(
    cls: type[PreTrainedModel], lookahead: bool, way: tuple[Pooling, Recovery, SlotPositions]
) -> None:
    """Pooling, recovery and positions come before the head, so other classes than the base need a few ways."""
    ways = dict(zip(("pooling", "recovery", "slot_positions"), way, strict=True))
    spec = FunnelSpec(pool_layer=1, recover_layer=3, stride=3, lookahead=lookahead, **ways)
    check_padding(forward_of(funnelled(cls, spec)), random_rows(lengths_around(3)))


@given(spec=specs(LAYERS), lengths=st.lists(st.integers(1, 18), min_size=1, max_size=5), seed=seeds)
def test_any_row_is_the_same_everywhere(spec: FunnelSpec, lengths: list[int], seed: int) -> None:
    check_padding(forward_of(funnelled(Gemma2Model, spec, seed)), random_rows(lengths, seed))


@pytest.mark.parametrize(
    ("cls", "stride", "chunk"),
    [
        *(
            pytest.param(Gemma2Model, stride, chunk, marks=[] if (stride, chunk) in CHUNKS else LONG)
            for stride in (1, 2, 3, 4)
            for chunk in (1, 2, 5)
        ),
        *((Gemma2ForCausalLM, stride, 2) for stride in (2, 3)),
    ],
)
def test_steps_and_chunks_equal_one_forward(cls: type[PreTrainedModel], stride: int, chunk: int) -> None:
    rows = random_rows([*lengths_around(stride), 17])
    for pool_layer, recover_layer in FUNNELS:
        model = funnelled(cls, FunnelSpec(pool_layer=pool_layer, recover_layer=recover_layer, stride=stride))
        check_chunks(model, rows, range(chunk, 20, chunk))
        check_chunks(model, rows[-1:], range(chunk, 20, chunk))


@pytest.mark.parametrize(("pooling", "recovery", "positions"), SOME_SLOW)
def test_every_way_in_chunks(pooling: Pooling, recovery: Recovery, positions: SlotPositions) -> None:
    ways = {"pooling": pooling, "recovery": recovery, "slot_positions": positions}
    model = funnelled(Gemma2Model, FunnelSpec(pool_layer=1, recover_layer=3, stride=3, **ways))
    check_chunks(model, random_rows([4, 9, 14, 16]), [3, 7, 8, 9, 13])


@given(
    spec=specs(LAYERS, lookahead=st.just(False)),
    lengths=st.lists(st.integers(1, 18), min_size=1, max_size=4),
    cuts=st.sets(st.integers(1, 17)),
    side=st.sampled_from(["left", "right"]),
    extra=st.integers(0, 3),
    seed=seeds,
)
def test_any_chunks_equal_one_forward(
    spec: FunnelSpec, lengths: list[int], cuts: set[int], side: str, extra: int, seed: int
) -> None:
    check_chunks(funnelled(Gemma2Model, spec, seed), random_rows(lengths, seed), sorted(cuts), side, extra)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mean_accumulates_in_float32(dtype: torch.dtype) -> None:
    spec = FunnelSpec(pool_layer=0, recover_layer=1, stride=7)
    model, [row] = funnelled(Gemma2Model, spec, dtype=dtype, hidden_size=48), random_rows([15])
    slots: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda *call: slots.append(call[-1][0][0]))
    alone(forward_of(model))(row)
    tokens = model.embed_tokens(torch.tensor(row)).detach()
    means = torch.stack([tokens[window].float().mean(dim=0) for window in oracle.list_windows(15, 7, False)])
    assert slots[0].dtype == dtype
    assert_close(slots[0].float(), means.to(dtype).float(), 1e-6, "slots")
