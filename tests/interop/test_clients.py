"""Libraries of embeddings load a bundle through Optimum, and embed texts as its modules do after eager PyTorch.

Without modules, they take the mean of the hidden states.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import EMBEDDER, KINDS, UNNAMED, Case, assert_close
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

ONNX = {"backend": "onnx", "model_kwargs": {"file_name": "model.onnx", "provider": "CPUExecutionProvider"}}
NAMES = [UNNAMED, *(f"{model}-{kind}" for model in ("feature-extraction", EMBEDDER) for kind in KINDS)]


def sentence_transformers(folder: str, texts: list[str]) -> NDArray[Any]:
    return SentenceTransformer(folder, device="cpu", **ONNX).encode(texts)


def langchain(folder: str, texts: list[str]) -> NDArray[Any]:
    return np.array(
        HuggingFaceEmbeddings(model_name=folder, model_kwargs={"device": "cpu", **ONNX}).embed_documents(texts)
    )


def llama_index(folder: str, texts: list[str]) -> NDArray[Any]:
    model = HuggingFaceEmbedding(folder, device="cpu", normalize=False, **ONNX)
    return np.array(model.get_text_embedding_batch(texts))


@pytest.mark.parametrize("client", [sentence_transformers, langchain, llama_index], ids=lambda client: client.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_embeddings(client: Any, name: str, bundles: Path) -> None:
    case = Case.read(bundles, name)
    embeddings = case.reference.get("embeddings", np.stack([row.mean(axis=0) for row in case.rows()]))
    assert_close(client(str(case.folder), case.texts), embeddings, "eager PyTorch")
