"""A real Triton server takes packages as they are, and refuses broken ones: `make triton`."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exported import RELATIVE, Recipe
from models import Side, main_output, make_batch, random_rows
from serving import add_engine
from triton_server import Server, back_ends, packages, serving

from funnel_export import FunnelSpec, apply_funnel, load_bundle
from funnel_export.commands.package import package
from funnel_export.spec.choices import Backend, Kind, Task
from funnel_export.spec.triton import TritonOptions

pytestmark = pytest.mark.triton

OPTIONS = {
    "plain": TritonOptions(),
    "single": TritonOptions(max_batch_size=0),
    "batching": TritonOptions(preferred_batch_size=(2, 4), max_queue_delay_us=100, instances=2, kind=Kind.CPU),
}
CLASSIFIER = Recipe(
    family="gemma3_text", task=Task.TEXT_CLASSIFICATION, funnel=FunnelSpec.parse("1:3:3", lookahead=True)
)
BROKEN = {
    "field": ("max_batch_size:", "max_batch_sizes:", 'no field named "max_batch_sizes"'),
    "dtype": ("TYPE_INT64", "TYPE_INVALID", "must specify 'data_type'"),
    "batch": (
        "preferred_batch_size: 4",
        "preferred_batch_size: 9",
        "dynamic batching preferred size must be <= max batch size",
    ),
}
"""Changes of the config of `batching`, and what the server says of each."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages with all options, a plan, and broken ones."""
    packages()
    folder = tmp_path_factory.mktemp("models")
    for name, options in OPTIONS.items():
        package(Recipe().bundle(), folder, name=name, options=options)
    package(CLASSIFIER.bundle(), folder, name="classifier")
    bundle = load_bundle(shutil.copytree(Recipe().bundle().path, tmp_path_factory.mktemp("bundle") / "bundle"))
    add_engine(bundle, "a:batch=1:1:4,sequence=16:64:128")
    package(bundle, folder, name="plan", options=TritonOptions(backend=Backend.TENSORRT))
    for name, (old, new, _) in BROKEN.items():
        config = shutil.copytree(folder / "batching", folder / name) / "config.pbtxt"
        text = config.read_text().replace('name: "batching"', f'name: "{name}"')
        assert old in text
        config.write_text(text.replace(old, new))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server, with ONNX Runtime behind its Python back end."""
    folder = tmp_path_factory.mktemp("server")
    backends = back_ends(packages(), folder / "backends")
    with serving(packages(), repository, backends, folder / "log") as running:
        yield running


def infer(server: Server, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The one output that the server answers."""
    tensors = [
        {"name": key, "datatype": "INT64", "shape": value.shape, "data": value.ravel().tolist()}
        for key, value in inputs.items()
    ]
    answer = server.ask(f"models/{name}/infer", {"inputs": tensors})
    assert "error" not in answer, answer
    (output,) = answer["outputs"]
    assert output["datatype"] == "FP32"
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_package_is_served(name: str, server: Server, repository: Path) -> None:
    assert server.states()[name] == "READY", server.log.read_text()
    ids = np.random.default_rng(0).integers(1, 60, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, inputs)
    np.testing.assert_allclose(infer(server, name, inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_of_gemma3_answers_as_pytorch(side: Side, server: Server) -> None:
    assert server.states()["classifier"] == "READY", server.log.read_text()
    model = CLASSIFIER.model()
    apply_funnel(model, CLASSIFIER.funnel)
    batch = make_batch(random_rows([7, 3, 12]), side)
    with torch.no_grad():
        wanted = main_output(model(batch.input_ids, attention_mask=batch.attention_mask)).numpy()
    inputs = {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}
    limit = RELATIVE * np.abs(wanted).max()
    np.testing.assert_allclose(infer(server, "classifier", inputs), wanted, rtol=0, atol=limit)


def test_larger_batches_than_configured_are_refused(server: Server) -> None:
    ids = np.ones((9, 3), np.int64)
    with pytest.raises(AssertionError, match="batch-size must be <= 8"):
        infer(server, "plain", {"input_ids": ids, "attention_mask": ids})


def test_a_plans_config_is_accepted(server: Server) -> None:
    """The server looks for the back end only once it has taken the config, and there is none for TensorRT."""
    assert "unable to find backend library for backend 'tensorrt'" in server.states()["plan"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_refused(name: str, server: Server) -> None:
    assert server.states()[name] == ""
    assert BROKEN[name][2] in server.log.read_text()
