"""Applying and removing a funnel: what changes in the model, what is refused, and what works in a patched model."""

import copy
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from models import (
    ALL_CLASSES,
    base_of,
    main_output,
    make_batch,
    random_rows,
    save_tiny_checkpoint,
    tiny_config,
    tiny_model,
)
from properties import alone, assert_close, check_generation, check_padding, check_rows, forward_of, funnelled, generate
from transformers import (
    Gemma2ForCausalLM,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)
from transformers.models.gemma2 import modeling_gemma2

from funnel_export import FunnelSpec
from funnel_export.errors import CheckpointError, FunnelExportError, SpecError
from funnel_export.funnel import apply_funnel, remove_funnel
from funnel_export.funnel.parts import LayerPart
from funnel_export.spec.choices import Recovery

SPEC = FunnelSpec(pool_layer=1, recover_layer=3, stride=2)
ROWS = random_rows([5, 8, 9])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def output_of(model: PreTrainedModel) -> torch.Tensor:
    batch = make_batch(ROWS)
    return forward_of(model)(batch.input_ids, batch.attention_mask)


def attributes(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names of the attributes of each module and of the configs."""
    found = {name: sorted(module.__dict__) for name, module in model.named_modules()}
    return found | {"config": sorted(model.config.__dict__), "base config": sorted(base_of(model).config.__dict__)}


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_removal_restores_the_model(cls: type[PreTrainedModel]) -> None:
    model = tiny_model(cls, dtype=torch.float32)
    before, config, dense = attributes(model), model.config.to_dict(), output_of(model)
    assert apply_funnel(model, SPEC) is model
    assert not torch.equal(output_of(model), dense)
    assert remove_funnel(model) is model
    assert attributes(model) == before
    assert model.config.to_dict() == config
    assert torch.equal(output_of(model), dense)


def test_another_funnel_can_be_applied_after_removal() -> None:
    once = funnelled(Gemma2Model, SPEC)
    other = FunnelSpec(pool_layer=0, recover_layer=4, stride=3)
    again = apply_funnel(remove_funnel(once), other)
    assert again.config.funnel == other.to_dict()
    assert_close(output_of(again)[2], output_of(funnelled(Gemma2Model, other))[2], 0.0, "applied again")


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_only_one_instance_changes(cls: type[PreTrainedModel]) -> None:
    classes = [cls, Gemma2Model, modeling_gemma2.Gemma2DecoderLayer, modeling_gemma2.Gemma2Attention]
    theirs = [dict(vars(kind)) for kind in classes] + [dict(vars(modeling_gemma2))]
    other, model = tiny_model(cls, dtype=torch.float32), tiny_model(cls, dtype=torch.float32)
    dense = output_of(other)
    output_of(apply_funnel(model, SPEC))
    assert torch.equal(output_of(other), dense)
    assert not hasattr(other.config, "funnel")
    assert [dict(vars(kind)) for kind in classes] + [dict(vars(modeling_gemma2))] == theirs
    assert type(model) is cls


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_parameters_keep_their_names(cls: type[PreTrainedModel]) -> None:
    dense, model = tiny_model(cls), funnelled(cls, SPEC)
    assert list(model.state_dict()) == list(dense.state_dict())
    model.load_state_dict(tiny_model(cls, seed=1).state_dict())
    assert_close(output_of(model)[2], output_of(funnelled(cls, SPEC, seed=1))[2], 0.0, "loaded into a funnel")


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_checkpoint_carries_the_funnel(cls: type[PreTrainedModel], tmp_path: Path) -> None:
    model = funnelled(cls, SPEC, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32)
    assert loaded.config.funnel == SPEC.to_dict()
    assert torch.equal(output_of(apply_funnel(loaded)), output_of(model))


def test_dense_checkpoint_takes_a_funnel(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, seed=3, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32)
    want = output_of(funnelled(Gemma2ForCausalLM, SPEC, seed=3, dtype=torch.float32))
    assert torch.equal(output_of(apply_funnel(loaded, SPEC)), want)


def gradients(model: PreTrainedModel, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Gradients of every parameter in training mode, without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if checkpointing:
        # Newer versions of transformers warn about the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    batch = make_batch(ROWS)
    out = main_output(model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False))
    (out[batch.attention_mask.bool()] if out.dim() == 3 else out).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_gradients_reach_every_weight(cls: type[PreTrainedModel]) -> None:
    plain = gradients(funnelled(cls, SPEC, dtype=torch.float32), checkpointing=False)
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    saved = gradients(funnelled(cls, SPEC, dtype=torch.float32), checkpointing=True)
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_checkpointing_recomputes_the_layers() -> None:
    model, calls = funnelled(Gemma2Model, SPEC, dtype=torch.float32), []
    model.layers[2].mlp.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, checkpointing=True)
    assert len(calls) == 2


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_copy_of_a_patched_model_is_its_own(cls: type[PreTrainedModel]) -> None:
    model = funnelled(cls, SPEC, dtype=torch.float32)
    want, twin = output_of(model), copy.deepcopy(model)
    with torch.no_grad():
        base_of(model).embed_tokens.weight.zero_()
    assert torch.equal(output_of(twin), want)
    remove_funnel(twin)
    assert torch.equal(output_of(twin), output_of(tiny_model(cls, dtype=torch.float32)))
    assert model.config.funnel == SPEC.to_dict()


# The tests below use Hugging Face's unmodified arithmetic: float32 inside, and padding has queries.


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.0), (torch.float16, 0.0), (torch.float32, 1e-5)])
@pytest.mark.parametrize("recovery", [Recovery.DELTA, Recovery.REPLACE])
def test_stride_one_is_dense_in_every_dtype(recovery: Recovery, dtype: torch.dtype, limit: float) -> None:
    spec = FunnelSpec(pool_layer=1, recover_layer=3, stride=1, recovery=recovery)
    model, dense = funnelled(Gemma2Model, spec, dtype=dtype), tiny_model(Gemma2Model, dtype=dtype)
    check_rows(forward_of(model), alone(forward_of(dense)), ROWS, limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [SPEC, FunnelSpec(pool_layer=0, recover_layer=4, stride=3, lookahead=True)])
def test_padding_in_every_dtype(dtype: torch.dtype, spec: FunnelSpec) -> None:
    limit = 1e-5 if dtype in (torch.float64, torch.float32) else 64 * torch.finfo(dtype).eps
    check_padding(forward_of(funnelled(Gemma2Model, spec, dtype=dtype, initializer_range=0.3)), ROWS, limit)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_generation_with_and_without_cache(stride: int, num_beams: int) -> None:
    spec = FunnelSpec(pool_layer=1, recover_layer=3, stride=stride)
    check_generation(funnelled(Gemma2ForCausalLM, spec, dtype=torch.float32), ROWS, num_beams=num_beams)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_generation_with_a_prompt_in_chunks(chunk: int) -> None:
    model = funnelled(Gemma2ForCausalLM, SPEC, dtype=torch.float32)
    want = generate(model, make_batch(ROWS))
    assert torch.equal(generate(model, make_batch(ROWS), prefill_chunk_size=chunk), want)


def test_generation_goes_on_in_the_next_turn() -> None:
    model = funnelled(Gemma2ForCausalLM, SPEC, dtype=torch.float32)
    first = model.generate(torch.tensor([ROWS[0]]), max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    text = make_batch([[*first.sequences[0].tolist(), *ROWS[1]]])
    assert torch.equal(generate(model, text, past_key_values=first.past_key_values), generate(model, text))


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("stride", [2, 3])
def test_generation_in_a_batch_is_generation_alone(stride: int, use_cache: bool) -> None:
    model = funnelled(Gemma2ForCausalLM, FunnelSpec.parse(f"1:3:{stride}"), dtype=torch.float32)
    together = generate(model, make_batch(ROWS), use_cache=use_cache)
    for row, got in zip(ROWS, together, strict=True):
        assert got.tolist() == generate(model, make_batch([row]), use_cache=use_cache)[0].tolist()


def test_embeddings_may_be_given_instead_of_ids() -> None:
    model, ids = funnelled(Gemma2ForCausalLM, SPEC), torch.tensor([ROWS[1]])
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(input_ids=ids).logits)


def bidirectional(model: PreTrainedModel) -> PreTrainedModel:
    base_of(model).config.use_bidirectional_attention = True
    return model


def sdpa(model: PreTrainedModel) -> PreTrainedModel:
    """transformers 5 refuses SDPA for Gemma2; transformers 4 allowed it and dropped the softcap."""
    base_of(model).config._attn_implementation = "sdpa"
    return model


REFUSED: dict[str, tuple[Any, FunnelSpec | None, type[FunnelExportError], str]] = {
    "twice": (lambda: funnelled(Gemma2Model, SPEC), SPEC, SpecError, "already"),
    "no funnel anywhere": (tiny_model, None, SpecError, "no funnel given"),
    "lookahead in generation": (
        tiny_model,
        FunnelSpec(pool_layer=1, recover_layer=2, stride=2, lookahead=True),
        SpecError,
        "lookahead",
    ),
    "beyond the layers": (
        tiny_model,
        FunnelSpec(pool_layer=1, recover_layer=5, stride=2),
        SpecError,
        "recover_layer <= 4",
    ),
    "sdpa": (lambda: sdpa(tiny_model()), SPEC, CheckpointError, "eager"),
    "sdpa under a classifier": (lambda: sdpa(tiny_model(ALL_CLASSES[2])), SPEC, CheckpointError, "eager"),
    "bidirectional": (lambda: bidirectional(tiny_model()), SPEC, FunnelExportError, "bidirectional attention"),
    "no Gemma": (
        lambda: LlamaModel(
            LlamaConfig(
                vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2, head_dim=4
            )
        ),
        SPEC,
        FunnelExportError,
        "Gemma2",
    ),
}


@pytest.mark.parametrize(("make", "spec", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal_leaves_the_model_unchanged(
    make: Any, spec: FunnelSpec | None, error: type[Exception], says: str
) -> None:
    model = make()
    before, config = {name: sorted(m.__dict__) for name, m in model.named_modules()}, model.config.to_dict()
    with pytest.raises(error, match=says):
        apply_funnel(model, spec)
    assert {name: sorted(m.__dict__) for name, m in model.named_modules()} == before
    assert model.config.to_dict() == config


def test_bad_funnel_in_a_config_is_refused() -> None:
    model = tiny_model()
    model.config.funnel = SPEC.to_dict() | {"stride": 0}
    with pytest.raises(SpecError, match="stride"):
        apply_funnel(model)


def test_nothing_to_remove_is_an_error() -> None:
    with pytest.raises(SpecError, match="no funnel"):
        remove_funnel(tiny_model())


def test_calls_that_do_not_fit_are_refused() -> None:
    model, ids = funnelled(Gemma2ForCausalLM, SPEC), torch.tensor([ROWS[0]])
    with pytest.raises(SpecError, match="padding between the tokens"):
        model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 0, 1, 1]]))
    with pytest.raises(SpecError, match="wrong shape"):
        model(input_ids=ids, attention_mask=torch.ones(1, 4, dtype=torch.long))


def test_models_made_from_one_config_object_do_not_share_the_funnel() -> None:
    config = tiny_config()
    config._attn_implementation = "eager"
    one, other = Gemma2ForCausalLM(config), Gemma2ForCausalLM(config)
    apply_funnel(one, FunnelSpec.parse("1:3:2"))
    assert one.config.funnel == one.model.config.funnel
    assert not hasattr(other.config, "funnel")
    assert not hasattr(config, "funnel")
    assert remove_funnel(one).config is config


def test_a_forward_that_was_already_replaced_is_refused_and_kept() -> None:
    model = tiny_model()
    hooked = model.model.forward = lambda *args, **kwargs: None
    with pytest.raises(CheckpointError, match="already replaced"):
        apply_funnel(model, FunnelSpec.parse("1:3:2"))
    assert model.model.forward is hooked


def test_a_class_that_hides_its_forward_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with the forward of the class, whatever was set; the model stays as it was."""

    def find(self: Gemma2Model, name: str) -> Any:
        return MethodType(Gemma2Model.forward, self) if name == "forward" else object.__getattribute__(self, name)

    model = tiny_model(Gemma2Model)
    monkeypatch.setattr(Gemma2Model, "__getattribute__", find, raising=False)
    before = set(vars(model)), dict(model.named_modules())
    with pytest.raises(CheckpointError, match=r"(?s)forward of this model cannot be replaced.*unmodified model"):
        apply_funnel(model, replace(SPEC, recovery=Recovery.LINEAR))
    assert (set(vars(model)), dict(model.named_modules())) == before


def test_maps_of_a_model_without_a_checkpoint_are_refused() -> None:
    """Its config says that it has maps, and nothing says where."""
    linear = FunnelSpec.parse("1:3:2", recovery="linear")
    model = tiny_model()
    model.config.funnel = linear.to_dict()
    model.name_or_path = ""
    with pytest.raises(CheckpointError, match=r"(?s)weights of the recovery are not known.*from_pretrained"):
        apply_funnel(model)


def test_texts_packed_into_one_row_are_refused() -> None:
    model = apply_funnel(tiny_model(), FunnelSpec.parse("1:3:2"))
    ids = torch.ones(1, 5, dtype=torch.long)
    model(ids, position_ids=torch.arange(5)[None] + 7)
    with pytest.raises(SpecError, match="not consecutive"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1]]))


def test_another_attention_after_the_patch_is_refused() -> None:
    model = apply_funnel(tiny_model(), FunnelSpec.parse("1:3:2"))
    model.model.layers[0].self_attn.config._attn_implementation = "flex_attention"
    with pytest.raises(SpecError, match="eager attention"):
        model(torch.ones(1, 5, dtype=torch.long))


def test_a_part_can_be_hashed_before_its_fields_are_set() -> None:
    assert isinstance(hash(LayerPart.__new__(LayerPart)), int)  # torch.compile in PyTorch 2.11 does this
