"""What tests of packages share: configurations by Triton's own schema, and engines that only look like ones."""

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from funnel_export import Bundle
from funnel_export.bundle.engine import BuiltFor, EngineManifest, Gpus, record_file
from funnel_export.spec.profile import Profile

INT64, FP32, FP16, BF16, STRING = (
    model_config_pb2.DataType.Value(f"TYPE_{kind}") for kind in ("INT64", "FP32", "FP16", "BF16", "STRING")
)
PLAN = b"not a plan; packaging only copies it"


def read(path: Path) -> Any:
    """A `config.pbtxt`, as Triton would parse it."""
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def config(text: str) -> Any:
    """The configuration that the text of a test means."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensor(found: Any) -> tuple[str, int, list[int]]:
    return found.name, found.data_type, list(found.dims)


def add_engine(bundle: Bundle, *profiles: str, target: str = "tensorrt", name: str = "here") -> Path:
    """Write an engine into a bundle; nobody deserializes its plan."""
    folder = bundle.path / "engines" / name
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(PLAN)
    manifest = EngineManifest(
        target=target,
        version="11.0",
        built_for=BuiltFor(device="NVIDIA H200", platform="linux-x86_64", gpus=Gpus(compute_capabilities=["9.0"])),
        dtype=bundle.spec.dtype,
        graph="model",
        graph_sha256=bundle.model.sha256,
        weights=bundle.manifest.weights,
        profiles=[Profile.parse(text) for text in profiles],
        options={},
        files=[record_file(folder / "model.plan")],
        versions={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder
