"""`transplant`: every weight is adapted + (instruct - base), and checkpoints that do not fit each other are refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from models import save_tiny_checkpoint
from safetensors.torch import load_file, save_file
from tokenizers_of_words import CHAT, save_tokenizer
from torch import Tensor
from transformers import Gemma2ForCausalLM, GemmaForCausalLM, GenerationConfig

from funnel_export import FunnelSpec, apply_funnel, check, export, transplant
from funnel_export.checkpoint import task_vector
from funnel_export.commands.transplant import REPORT
from funnel_export.errors import BundleError, CheckpointError, SpecError
from funnel_export.quality.distances import LARGEST

SPEC = FunnelSpec.parse("1:3:2", recovery="linear")


@dataclass(frozen=True)
class Three:
    """An adapted checkpoint in bfloat16 and several files, with maps; its base model; the instruct model of that."""

    adapted: Path
    base: Path
    instruct: Path


def retensor(checkpoint: Path, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Change the tensors of a checkpoint; those of which `change` makes None are removed."""
    for file in checkpoint.glob("*.safetensors"):
        changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
        save_file({name: each for name, each in changed.items() if each is not None}, file, {"format": "pt"})


def train(checkpoint: Path, seed: int, size: float = 0.05) -> Path:
    """Change all weights except maps at random."""
    generator = torch.Generator().manual_seed(seed)

    def step(name: str, weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator)
        return weight if "funnel." in name else (weight.float() * (1 + size * noise)).to(weight.dtype)

    retensor(checkpoint, step)
    return checkpoint


def configure(checkpoint: Path, **values: object) -> None:
    """Change values of config.json; those that are None are removed."""
    file = checkpoint / "config.json"
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def fill(checkpoint: Path, value: float) -> None:
    """Give all values of the last norm this value."""
    retensor(checkpoint, lambda name, each: torch.full_like(each, value) if name == "model.norm.weight" else each)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    return {name: each for file in checkpoint.glob("*.safetensors") for name, each in load_file(file).items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Three:
    folder = tmp_path_factory.mktemp("three")
    base = save_tiny_checkpoint(folder / "base")
    instruct = train(save_tiny_checkpoint(folder / "instruct"), seed=1)
    adapted = train(save_tiny_checkpoint(folder / "adapted", maps=SPEC, max_shard_size="40KB"), seed=2, size=0.1)
    retensor(adapted, lambda name, weight: weight.bfloat16())
    configure(adapted, dtype="bfloat16")
    for each in (adapted, base):
        save_tokenizer(each)
    save_tokenizer(instruct, chat=True)
    GenerationConfig(eos_token_id=[2, 9], pad_token_id=0).save_pretrained(instruct)
    configure(instruct, eos_token_id=[2, 9])
    return Three(adapted, base, instruct)


@pytest.fixture
def three(made: Three, tmp_path: Path) -> Three:
    """Copies, which a test may change."""
    return Three(*(shutil.copytree(each, tmp_path / each.name) for each in (made.adapted, made.base, made.instruct)))


def run(three: Three, out: Path, **options: object):
    return transplant(three.adapted, out, base=three.base, instruct=three.instruct, **options)


@pytest.fixture(scope="module")
def out(made: Three, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_vector, "CHUNK", 100)  # most weights are read in parts
        run(made, out)
    return out


def test_every_weight_is_the_sum_and_maps_are_kept(made: Three, out: Path) -> None:
    adapted, base, instruct, found = map(tensors_of, (made.adapted, made.base, made.instruct, out))
    assert found.keys() == adapted.keys()
    maps = {name for name in adapted if name.startswith("model.funnel.")}
    assert len(maps) == 4
    for name, weight in adapted.items():
        wanted = weight
        if name not in maps:
            wanted = (weight.float() + (instruct[name] - base[name])).bfloat16()
            assert not torch.equal(wanted, weight)
        assert torch.equal(found[name], wanted), name
        assert found[name].dtype == torch.bfloat16


def test_the_files_are_those_of_the_adapted_checkpoint(made: Three, out: Path) -> None:
    files = sorted(file.name for file in made.adapted.glob("*.safetensors"))
    assert len(files) > 3
    assert files == sorted(file.name for file in out.glob("*.safetensors"))
    index = "model.safetensors.index.json"
    indexes = [json.loads((folder / index).read_text())["weight_map"] for folder in (made.adapted, out)]
    assert indexes[0] == indexes[1]


def test_config_and_tokenizer_are_those_of_the_instruct_model(made: Three, out: Path) -> None:
    config = json.loads((made.instruct / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert json.loads((out / "config.json").read_text()) == config | {"funnel": SPEC.to_dict(), "dtype": "bfloat16"}
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (made.instruct / name).read_bytes()
    assert (out / "chat_template.jinja").read_text() == CHAT


def norm(tensors: dict[str, Tensor], other: dict[str, Tensor], dimensions: int) -> float:
    """The norm of a difference, over all weights with this number of dimensions."""
    squares = ((tensors[name].double() - other[name].double()).square().sum() for name in tensors)
    return float(sum(each for name, each in zip(tensors, squares, strict=True) if tensors[name].ndim == dimensions))


def test_the_report_has_the_distances(made: Three, out: Path) -> None:
    report = json.loads((out / REPORT).read_text())
    assert [report[role] for role in ("adapted", "base", "instruct")] == [
        str(each) for each in (made.adapted, made.base, made.instruct)
    ]
    base = tensors_of(made.base)
    zeros = {name: torch.zeros_like(weight) for name, weight in base.items()}
    assert (report["funnel"], report["weights"], report["copied"]) == (SPEC.to_dict(), len(base), 4)
    for role, checkpoint in (("adapted_from_base", made.adapted), ("instruct_from_base", made.instruct)):
        other = tensors_of(checkpoint)
        other = {name: other[name] for name in base}
        for key, dimensions in (("matrices", 2), ("vectors", 1)):
            wanted = (norm(other, base, dimensions) / norm(base, zeros, dimensions)) ** 0.5
            assert report[role][key] == pytest.approx(wanted, rel=1e-5)
        single = {name: float((other[name].float() - base[name]).norm() / base[name].norm()) for name in base}
        assert report[role]["largest_weight"] == max(single, key=lambda name: single[name])
        assert report[role]["largest"] == pytest.approx(max(single.values()), rel=1e-5)
        assert report[role]["changed"] == len(base)


def test_hugging_face_loads_it_and_it_is_exported(out: Path, tmp_path: Path) -> None:
    model = apply_funnel(Gemma2ForCausalLM.from_pretrained(out, attn_implementation="eager"))
    assert model.dtype == torch.bfloat16
    stored = tensors_of(out)
    assert all(torch.equal(parameter, stored[name]) for name, parameter in model.named_parameters())
    bundle = export(out, tmp_path / "bundle", task="text-generation", dtype="float32")
    assert bundle.spec.funnel == SPEC
    assert check(bundle, targets=["onnxruntime"]).passed


def test_a_checkpoint_of_which_only_the_maps_were_fitted(three: Three, tmp_path: Path) -> None:
    base = tensors_of(three.base)
    retensor(three.adapted, lambda name, weight: base.get(name, weight))
    report = run(three, tmp_path / "out")
    assert (report.adapted_from_base.changed, report.adapted_from_base.matrices) == (0, 0.0)
    assert (report.adapted_from_base.largest, report.adapted_from_base.largest_weight) == (0.0, None)
    assert tensors_of(tmp_path / "out").keys() == tensors_of(three.adapted).keys()


def test_norms_that_are_zero_in_the_base_model(three: Three, tmp_path: Path) -> None:
    """As in a model that was not trained yet."""
    retensor(three.base, lambda name, weight: torch.zeros_like(weight) if "norm" in name else weight)
    report = run(three, tmp_path / "out")
    assert report.instruct_from_base.vectors is None
    assert "norm" not in str(report.instruct_from_base.largest_weight)
    assert json.loads((tmp_path / "out" / REPORT).read_text())["adapted_from_base"]["vectors"] is None


def test_files_that_write_the_same_model_differently(made: Three, three: Three, out: Path, tmp_path: Path) -> None:
    """Other prefixes of names, RoPE as older versions have it, a rounded epsilon, buffers, other special tokens."""

    def rename(name: str) -> str:
        return name.removeprefix("model.")

    tensors = {rename(name): tensor for name, tensor in tensors_of(three.base).items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, three.base / "model.safetensors", {"format": "pt"})
    configure(three.base, rope_parameters=None, rope_theta=10000.0, rms_norm_eps=9.999999974752427e-07, bos_token_id=5)
    run(three, tmp_path / "out")
    wanted, found = map(tensors_of, (out, tmp_path / "out"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_stored_head_that_is_tied(three: Three, tmp_path: Path) -> None:
    embedding = tensors_of(three.adapted)["model.embed_tokens.weight"]
    save_file({"lm_head.weight": embedding}, three.adapted / "head.safetensors", {"format": "pt"})
    index = three.adapted / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "head.safetensors"
    index.write_text(json.dumps(content))
    run(three, tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert not torch.equal(found["lm_head.weight"], embedding)


def another_family(three: Three) -> None:
    shutil.rmtree(three.instruct)
    save_tiny_checkpoint(three.instruct, GemmaForCausalLM)


def another_size(three: Three) -> None:
    shutil.rmtree(three.base)
    save_tiny_checkpoint(three.base, intermediate_size=48)


def another_vocabulary(three: Three) -> None:
    file = three.instruct / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"other"'))


def another_model(three: Three) -> None:
    shutil.rmtree(three.base)
    save_tiny_checkpoint(three.base, seed=5)


def another_tuned_model(three: Three) -> None:
    train(three.instruct, seed=3, size=1.0)


def exchanged(three: Three) -> None:
    three.base.rename(three.base.with_name("other"))
    three.instruct.rename(three.base)
    three.base.with_name("other").rename(three.instruct)


def with_maps(three: Three) -> None:
    maps = {"model.funnel.first": torch.ones(40)}
    save_file(tensors_of(three.base) | maps, three.base / "model.safetensors", {"format": "pt"})


def without_a_layer(three: Three) -> None:
    retensor(three.instruct, lambda name, weight: None if "layers.2.mlp" in name else weight)


def of_another_shape(three: Three) -> None:
    retensor(three.base, lambda name, weight: weight[:39].clone() if name == "model.norm.weight" else weight)


def truncated(three: Three) -> None:
    file = next(three.adapted.glob("model-00002-*.safetensors"))
    os.truncate(file, file.stat().st_size - 8)


REFUSED: dict[str, tuple[Callable[[Three], object], type[Exception], str]] = {
    "another family": (another_family, CheckpointError, "different families\n.*Gemma2 and Gemma"),
    "another size": (another_size, CheckpointError, "different architectures\n.*intermediate_size: 64 and 48"),
    "another RoPE": (
        lambda three: configure(three.instruct, rope_parameters={"rope_theta": 7.0, "rope_type": "default"}),
        CheckpointError,
        "instruct model have different architectures\n.*rope_theta of full_attention: 10000.0 and 7.0",
    ),
    "another vocabulary": (another_vocabulary, CheckpointError, "vocabularies\n.*1 tokens.*7: 'w7' and 'other'"),
    "another model": (another_model, CheckpointError, "adapted checkpoint was not made from the base model"),
    "another tuned model": (another_tuned_model, CheckpointError, "instruct model was not made from the base model"),
    "base and instruct exchanged": (exchanged, CheckpointError, "nearer to the instruct model"),
    "no funnel": (lambda three: configure(three.adapted, funnel=None), CheckpointError, "has no funnel"),
    "no maps": (
        lambda three: retensor(three.adapted, lambda name, weight: None if ".funnel." in name else weight),
        CheckpointError,
        "no maps for its recovery",
    ),
    "a funnel beyond the layers": (
        lambda three: configure(three.adapted, funnel=SPEC.to_dict() | {"recover_layer": 9}),
        SpecError,
        "beyond the model's layers",
    ),
    "a funnel in the base model": (
        lambda three: configure(three.base, funnel=SPEC.to_dict()),
        CheckpointError,
        "the base model has a funnel",
    ),
    "a funnel in the instruct model": (
        lambda three: configure(three.instruct, funnel=SPEC.to_dict()),
        CheckpointError,
        "the instruct model has a funnel",
    ),
    "maps in the base model": (with_maps, CheckpointError, "only the base model has funnel.first"),
    "missing weights": (without_a_layer, CheckpointError, "only the adapted checkpoint has layers.2.mlp"),
    "another shape": (of_another_shape, CheckpointError, r"different shapes.*\n.*\[40\] and \[39\]"),
    "nothing to transplant": (
        lambda three: shutil.copy(three.base / "model.safetensors", three.instruct / "model.safetensors"),
        CheckpointError,
        "nothing to transplant",
    ),
    "not a number": (
        lambda three: fill(three.adapted, torch.nan),
        CheckpointError,
        "not numbers\n.*model.norm.weight of the adapted model",
    ),
    "an unsupported dtype": (
        lambda three: retensor(three.base, lambda name, weight: weight.double()),
        CheckpointError,
        "unsupported dtype\n.*of the base model: F64",
    ),
    "a truncated file": (truncated, CheckpointError, "a weight file cannot be read"),
    "a file that is not a tokenizer's": (
        lambda three: (three.base / "tokenizer.json").write_text('{"model": {"vocab": 3}}'),
        CheckpointError,
        "does not have a vocabulary",
    ),
    "no checkpoint": (lambda three: shutil.rmtree(three.base), CheckpointError, "checkpoint not found"),
}


@pytest.mark.parametrize(("change", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_and_nothing_is_written(
    change: Callable[[Three], object], error: type[Exception], says: str, three: Three, tmp_path: Path
) -> None:
    change(three)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=says):
        run(three, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_unrelated_models_are_far_beyond_the_limit(made: Three, tmp_path: Path) -> None:
    base, other = map(tensors_of, (made.base, save_tiny_checkpoint(tmp_path, seed=5)))
    zeros = {name: torch.zeros_like(weight) for name, weight in base.items()}
    assert (norm(other, base, 2) / norm(base, zeros, 2)) ** 0.5 > 1.9 * LARGEST


def test_an_output_with_content_is_kept(made: Three, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(BundleError):
        run(made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def fails_while_writing(three: Three, tmp_path: Path, change: Callable[[], object], says: str) -> None:
    """Change the input after it was checked; the error says so, and nothing is left."""
    before = sorted(tmp_path.iterdir())

    def progress(step: str, done: float | None = None, /) -> None:
        if step == "writing the weights" and done:  # a tensor has been written
            assert len(list(tmp_path.iterdir())) > len(before)
            change()

    with pytest.raises(CheckpointError, match=says):
        run(three, tmp_path / "out", progress=progress)
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_in_the_middle_leaves_nothing(three: Three, tmp_path: Path) -> None:
    file = three.instruct / "model.safetensors"
    fails_while_writing(three, tmp_path, lambda: os.truncate(file, 2000), "became shorter while it was read")


def test_a_sum_that_its_dtype_cannot_store(three: Three, tmp_path: Path) -> None:
    for checkpoint, value in ((three.adapted, 1e38), (three.base, -2e38), (three.instruct, 1e38)):
        fill(checkpoint, value)  # the sum is 4e38; the largest number of bfloat16 is 3.4e38
    fails_while_writing(three, tmp_path, lambda: None, r"infinite.*\n.*for model.norm.weight")
