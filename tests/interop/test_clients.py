"""Libraries of embeddings load a bundle through Optimum: each text's vector is the mean of eager PyTorch's states."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import UNNAMED, Case, assert_close
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

ONNX = {"backend": "onnx", "model_kwargs": {"file_name": "model.onnx", "provider": "CPUExecutionProvider"}}


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
@pytest.mark.parametrize("name", ["feature-extraction-funnel", "feature-extraction-dense", UNNAMED])
def test_embeddings(client: Any, name: str, bundles: Path) -> None:
    case = Case.read(bundles, name)
    assert_close(
        client(str(case.folder), case.texts), np.stack([row.mean(axis=0) for row in case.rows()]), "eager PyTorch"
    )
