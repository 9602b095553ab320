"""A bundle with modules embeds texts in sentence-transformers as the checkpoint does in PyTorch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import EMBEDDER, HALF, KINDS, Case, assert_close
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm

LONG = "A class definition defines a class object. " * 12
"""More tokens than `sentence_bert_config.json` allows."""


def load(folder: Path, backend: str = "onnx") -> SentenceTransformer:
    return SentenceTransformer(str(folder), backend=backend, device="cpu")


def embed(model: SentenceTransformer, texts: list[str]) -> NDArray[np.float32]:
    """Without a prompt, with both prompts, and cut off."""
    return np.concatenate([model.encode([*texts, LONG]), model.encode_query(texts), model.encode_document(texts)])


@pytest.mark.parametrize("kind", KINDS)
def test_embeds_as_the_reference(kind: str, bundles: Path) -> None:
    case = Case.read(bundles, f"{EMBEDDER}-{kind}")
    assert_close(load(case.folder).encode(case.texts), case.reference["embeddings"], "eager PyTorch")


def test_a_dense_bundle_embeds_as_the_checkpoint_in_pytorch(bundles: Path) -> None:
    case = Case.read(bundles, f"{EMBEDDER}-dense")
    ours, theirs = load(case.folder), load(bundles / EMBEDDER, "torch")
    assert_close(embed(ours, case.texts), embed(theirs, case.texts), "PyTorch")
    assert (ours.max_seq_length, ours.prompts) == (theirs.max_seq_length, theirs.prompts)
    assert ours.similarity_fn_name == theirs.similarity_fn_name == "cosine"


def test_a_half_bundle_needs_half_modules(bundles: Path) -> None:
    case = Case.read(bundles, f"{EMBEDDER}-dense")
    model = load(bundles / HALF)
    with pytest.raises(RuntimeError, match="same dtype"):
        model.encode(case.texts)
    found = model.half().encode(case.texts)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, case.reference["embeddings"], rtol=0, atol=5e-3)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without_dense(folder: Path) -> None:
    modules = [module for module in json.loads((folder / "modules.json").read_text()) if "Dense" not in module["type"]]
    (folder / "modules.json").write_text(json.dumps(modules))


SPOILS: dict[str, Callable[[Path], object]] = {
    "no modules": lambda folder: (folder / "modules.json").unlink(),
    "no dense layers": without_dense,
    "another pooling": lambda folder: change(
        folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False
    ),
    "another activation": lambda folder: change(
        folder / "3_Dense" / "config.json", activation_function="torch.nn.modules.activation.Tanh"
    ),
    "longer texts": lambda folder: change(folder / "sentence_bert_config.json", max_seq_length=64),
    "another prompt": lambda folder: change(folder / "config_sentence_transformers.json", prompts={"query": "query: "}),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_each_file_counts(spoil: str, bundles: Path, tmp_path: Path) -> None:
    case = Case.read(bundles, f"{EMBEDDER}-dense")
    wanted = embed(load(bundles / EMBEDDER, "torch"), case.texts)
    folder = shutil.copytree(case.folder, tmp_path / "bundle")
    SPOILS[spoil](folder)
    with pytest.raises(AssertionError, match="differs from PyTorch"):
        assert_close(embed(load(folder), case.texts), wanted, "PyTorch")


def test_sentence_transformers_saves_the_same_files(bundles: Path, tmp_path: Path) -> None:
    """What the checkpoint of these tests has is what the library itself writes, but for the classes' modules."""
    load(bundles / EMBEDDER, "torch").save_pretrained(str(tmp_path))
    ours, theirs = (files_of_modules(folder) for folder in (bundles / EMBEDDER, tmp_path))
    assert ours == theirs
    for module in json.loads((tmp_path / "modules.json").read_text()):
        assert module["type"].startswith("sentence_transformers.")


def test_other_modules_have_the_files_that_a_bundle_copies(bundles: Path, tmp_path: Path) -> None:
    model = load(bundles / EMBEDDER, "torch")
    SentenceTransformer(modules=[model[0], model[1], LayerNorm(40), Dropout()]).save_pretrained(str(tmp_path))
    files = {
        "1_Pooling/config.json",
        "2_LayerNorm/config.json",
        "2_LayerNorm/model.safetensors",
        "3_Dropout/config.json",
    }
    assert files_of_modules(tmp_path)[0] == files


def files_of_modules(folder: Path) -> tuple[set[str], list[tuple[str, str]]]:
    """The files in folders, and the path and class of each module."""
    files = {str(path.relative_to(folder)) for path in folder.glob("*/*")}
    modules = json.loads((folder / "modules.json").read_text())
    return files, [(module["path"], module["type"].rpartition(".")[2]) for module in modules]
