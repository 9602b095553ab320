"""What must hold of a funnel, each as a check that takes something to run and raises AssertionError.

The tests of the properties call these on the package's models, and the tests of the broken twins call the very same on
models that were broken on purpose: a check that nothing fails proves nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import oracle
import torch
from hypothesis import strategies as st
from models import VOCAB, Batch, Side, main_output, make_batch, tiny_model, with_random_maps
from torch import Tensor
from transformers import PreTrainedModel

from funnel_export import FunnelSpec
from funnel_export.funnel import FunnelCache, apply_funnel
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions

Row = list[int]
Forward = Callable[[Tensor, Tensor | None], Tensor]
"""(input_ids, attention_mask) -> outputs [batch, columns, width], or [batch, width] for a whole text's scores."""

FLOAT64_LIMIT = 1e-10


def specs(num_layers: int, lookahead: st.SearchStrategy[bool] | None = None) -> st.SearchStrategy[FunnelSpec]:
    """Any funnel that fits a model of `num_layers`."""
    layers = st.lists(st.integers(0, num_layers), min_size=2, max_size=2, unique=True).map(sorted)
    dropped = st.builds(
        lambda layers, **rest: FunnelSpec(pool_layer=layers[0], recover_layer=layers[1], stride=1, drop=True, **rest),
        layers=layers.filter(lambda ends: ends != [0, num_layers]),
        recovery=st.sampled_from([Recovery.DELTA, Recovery.LINEAR]),
    )
    pooled = st.builds(
        lambda layers, **rest: FunnelSpec(pool_layer=layers[0], recover_layer=layers[1], **rest),
        layers=layers,
        stride=st.integers(1, 5),
        pooling=st.sampled_from(Pooling),
        recovery=st.sampled_from(Recovery),
        slot_positions=st.sampled_from(SlotPositions),
        lookahead=lookahead if lookahead is not None else st.booleans(),
    )
    return pooled if num_layers == 1 else pooled | dropped


def funnelled(cls: type[PreTrainedModel], spec: FunnelSpec, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny model with a funnel."""
    return with_random_maps(apply_funnel(tiny_model(cls, seed=seed, **overrides), spec))


def lengths_around(stride: int, window: int = 5) -> list[int]:
    """One token, around the ends of the first windows, and past tiny_config's sliding window."""
    return sorted({1, max(1, stride - 1), stride, stride + 1, 2 * stride, 2 * stride + 1, window + 2 * stride + 3})


def forward_of(model: PreTrainedModel) -> Forward:
    """A model's forward without cache and gradients."""

    def run(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return main_output(model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False))

    return run


def base_weights(model: PreTrainedModel) -> dict[str, Any]:
    """A model's weights as numpy arrays, by their names in the base model."""
    return {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}


def oracle_of(model: PreTrainedModel, spec: FunnelSpec | None) -> Callable[[Row], Tensor]:
    """What the oracle says a model of this class, weights and configuration puts out for one row.

    Weights and configuration are read now, so a model may be broken afterwards.
    """
    weights, config, head = base_weights(model), model.config.to_dict(), type(model).__name__
    funnel = None if spec is None else oracle.Funnel(**spec.to_dict())

    def expected(row: Row) -> Tensor:
        hidden = oracle.trace(weights, config, funnel, row).hidden
        if head.endswith("ForCausalLM"):
            hidden = oracle.causal_lm_logits(weights, config, hidden)
        elif head.endswith("ForTokenClassification"):
            hidden = oracle.token_classification_logits(weights, hidden)
        elif head.endswith("ForSequenceClassification"):
            hidden = oracle.sequence_classification_logits(weights, hidden)
        return torch.from_numpy(np.asarray(hidden))

    return expected


def alone(run: Forward) -> Callable[[Row], Tensor]:
    """`run` on one row without a mask."""
    return lambda row: run(torch.tensor([row]), None)[0]


def assert_close(got: Tensor, want: Tensor, limit: float, what: str) -> None:
    """Largest absolute difference at most `limit`; NaN fails."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    worst = (got - want).abs().max().item() if got.numel() else 0.0
    if not worst <= limit:
        raise AssertionError(f"{what}: differs by {worst:.3g}, allowed {limit:.3g}")


def check_rows(
    run: Forward, expected: Callable[[Row], Tensor], rows: Sequence[Row], limit: float = FLOAT64_LIMIT
) -> None:
    """Each row alone gives what `expected`, an oracle or another model, says."""
    for row in rows:
        assert_close(alone(run)(row), expected(row), limit, f"row of {len(row)} tokens")


def check_padding(run: Forward, rows: Sequence[Row], limit: float = FLOAT64_LIMIT) -> None:
    """A row gives the same outputs alone, left-padded, right-padded, and beside longer rows."""
    wants = [alone(run)(row) for row in rows]
    batches: list[tuple[str, Batch, list[Tensor]]] = []
    for side in ("left", "right"):
        batches.append((f"beside others, padded {side}", make_batch(rows, side), wants))
        for row, want in zip(rows, wants, strict=True):
            batches.append((f"alone, padded {side}", make_batch([row], side, extra=3), [want]))
    for what, batch, batch_wants in batches:
        outputs = run(batch.input_ids, batch.attention_mask)
        gots = batch.real(outputs) if outputs.dim() == 3 else list(outputs)
        for got, want in zip(gots, batch_wants, strict=True):
            assert_close(got, want, limit, what)


def changed_outputs(run: Forward, row: Row) -> list[list[bool]]:
    """For each token t and each token p: does changing t change the outputs at p at all?"""
    want, table = alone(run)(row), []
    for t, token in enumerate(row):
        other = row.copy()
        other[t] = token % (VOCAB - 1) + 1
        table.append((alone(run)(other) != want).any(dim=-1).tolist())
    return table


def check_causal(run: Forward, row: Row) -> None:
    """Changing token t changes no output before t, to the last bit."""
    for t, changes in enumerate(changed_outputs(run, row)):
        assert not any(changes[:t]), f"changing token {t} changes {[p for p in range(t) if changes[p]]} before it"


def check_horizon(run: Forward, row: Row, later_tokens: int) -> None:
    """A token sees itself and at most `later_tokens` after it, to the last bit, and some token does see as many.

    0 is a causal model. The second half keeps the first from holding for a model that sees nothing.
    """
    table = changed_outputs(run, row)
    seen = [t - p for t, changes in enumerate(table) for p, changed in enumerate(changes) if changed]
    assert all(table[t][t] for t in range(len(row))), "a token does not see itself"
    assert max(seen) == later_tokens, f"a token sees {max(seen)} later tokens, wanted {later_tokens}"


def check_reach(run: Forward, row: Row, sees: Callable[[int, int], bool]) -> None:
    """Token p's output depends on token q where, and only where, `sees(p, q)`."""
    table = changed_outputs(run, row)
    for p in range(len(row)):
        got = [q for q in range(len(row)) if table[q][p]]
        want = [q for q in range(len(row)) if sees(p, q)]
        assert got == want, f"token {p} sees {got}, wanted {want}"


def check_chunks(
    model: PreTrainedModel, rows: Sequence[Row], cuts: Sequence[int], side: Side = "left", extra: int = 0
) -> None:
    """Columns fed in chunks that end at `cuts` give what one full forward gives; rows are at different phases.

    A batch without padding is fed without a mask.
    """
    batch = make_batch(rows, side, extra)
    width = batch.input_ids.shape[1]
    full = forward_of(model)(batch.input_ids, batch.attention_mask)
    ends = sorted({cut for cut in cuts if 0 < cut < width} | {width})
    cache, pieces, start = FunnelCache(), [], 0
    for end in ends:
        with torch.no_grad():
            out = model(
                input_ids=batch.input_ids[:, start:end],
                attention_mask=None if batch.attention_mask.all() else batch.attention_mask[:, :end],
                past_key_values=cache,
                use_cache=True,
            )
        assert out.past_key_values is cache
        assert cache.get_seq_length() == end
        pieces.append(main_output(out))
        start = end
    gots, wants = batch.real(torch.cat(pieces, dim=1)), batch.real(full)
    for got, want in zip(gots, wants, strict=True):
        assert_close(got, want, FLOAT64_LIMIT, f"row of {len(got)} tokens in chunks ending at {ends}")


def generate(model: PreTrainedModel, batch: Batch, new_tokens: int = 12, **options: Any) -> Tensor:
    """The new tokens that `model.generate` adds to a batch, [batch * returned, new_tokens]."""
    settings = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    out = model.generate(batch.input_ids, attention_mask=batch.attention_mask, **(settings | options))
    return out[:, batch.input_ids.shape[1] :]


def check_generation(model: PreTrainedModel, rows: Sequence[Row], **options: Any) -> None:
    """Generating with the cache gives the tokens that generating without it gives."""
    batch = make_batch(rows, "left")
    got = generate(model, batch, use_cache=True, **options)
    want = generate(model, batch, use_cache=False, **options)
    assert torch.equal(got, want), f"with the cache {got.tolist()}, without {want.tolist()}"
