"""A bundle with engines, for a test to spoil."""

import shutil
from pathlib import Path

import pytest
from exported import Recipe

from funnel_export import Bundle, compile_bundle, load_bundle


@pytest.fixture(scope="package")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine of each target that runs here; do not change its files."""
    folder = shutil.copytree(Recipe().bundle().path, tmp_path_factory.mktemp("engines") / "bundle")
    for target in ("onnxruntime", "openvino"):
        compile_bundle(folder, target)
    return folder


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Bundle:
    """A copy for a test to spoil."""
    return load_bundle(shutil.copytree(compiled, tmp_path / "bundle"))
