"""Data goes one way: each station imports only from those before it, and importing the package loads nothing heavy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import funnel_export

ROOT = Path(funnel_export.__file__).parent

STATIONS = [
    "errors",
    "progress",
    "intervals",
    "system",
    "spec",
    "families",
    "checkpoint",
    "bundle",
    "quantization",
    "funnel",
    "exporter",
    "targets",
    "runtime",
    "verify",
    "latency",
    "quality",
    "training",
    "report",
    "packaging",
    "commands",
    "cli",
    "gates",
    "__main__",
]
"""From first to last; `__init__` only names what others hold."""


def station(module: str) -> str:
    """The station of `funnel_export.<station>...`; the package itself stands before all of them."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports anywhere, in functions too, but for annotations only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "funnel_export":
            found |= {node.module} if "." in node.module else {f"funnel_export.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("funnel_export.")}
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_stations_before(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in imports(path):
        assert STATIONS.index(station(module)) <= STATIONS.index(own), f"{own} imports {module}"


def test_every_file_has_a_station() -> None:
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES} == set(STATIONS)


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "numpy",
    "matplotlib",
    "datasets",
    "seqeval",
}


def test_importing_the_package_loads_nothing_heavy() -> None:
    statement = "import funnel_export; funnel_export.FunnelSpec.parse('1:3:2'); funnel_export.load_bundle"
    assert not loaded_by(statement) & HEAVY


def test_the_command_line_starts_without_torch() -> None:
    assert not loaded_by("import funnel_export.cli") & HEAVY


def test_public_names_are_there() -> None:
    for name in funnel_export.__all__:
        assert getattr(funnel_export, name) is not None
    assert set(funnel_export._HOMES) | {"__version__"} == set(funnel_export.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        funnel_export.nonesuch  # noqa: B018


def test_no_module_hides_a_public_name() -> None:
    """A submodule becomes an attribute of its package as soon as anybody imports it."""
    modules = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert not modules & set(funnel_export.__all__)


def test_few_files_stand_beside_the_rooms() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 6


def test_only_families_name_an_architecture() -> None:
    """What differs between architectures is asked of `Family`: nobody else names their Hugging Face classes."""
    named = {path for path in FILES if re.search(r"\b(Gemma\d*[A-Z_]\w*|GEMMA\w*)", path.read_text())}
    outside = {path.relative_to(ROOT) for path in named if path.parent.name != "families"}
    assert outside <= {Path("commands/demo.py")}, "the model that it makes"
