"""onnx's checker and shape inference take a bundle; weight files with a second hard link they refuse."""

from pathlib import Path

import onnx
import pytest
from cases import LINKED, NAMES, Case

COPIED = pytest.mark.parametrize("name", [name for name in NAMES if name != LINKED])
HARD_LINKS = "multiple hard links"


@COPIED
def test_full_check(bundles: Path, name: str) -> None:
    onnx.checker.check_model(bundles / name / "model.onnx", full_check=True)


def test_strict_shape_inference(case: Case, tmp_path: Path) -> None:
    inferred = tmp_path / "inferred.onnx"
    onnx.shape_inference.infer_shapes_path(
        str(case.folder / "model.onnx"), str(inferred), check_type=True, strict_mode=True, data_prop=True
    )
    graph = onnx.load(inferred, load_external_data=False).graph
    typed = {value.name for value in (*graph.value_info, *graph.output, *graph.input)}
    assert not {name for node in graph.node for name in node.output if name} - typed
    axes = [axis.dim_param for axis in graph.output[0].type.tensor_type.shape.dim]
    assert axes[0] == "batch_size"
    assert case.task == "text-classification" or axes[1] == "sequence_length"


def test_links_are_refused(bundles: Path) -> None:
    linked = bundles / LINKED / "model.onnx"
    assert (linked.parent / "model.safetensors").stat().st_nlink == 2
    with pytest.raises(onnx.checker.ValidationError, match=HARD_LINKS):
        onnx.checker.check_model(linked, full_check=True)
    with pytest.raises(onnx.checker.ValidationError, match=HARD_LINKS):
        onnx.load(linked)


def test_a_damaged_graph_is_refused(bundles: Path) -> None:
    model = onnx.load(bundles / "text-generation-funnel" / "model.onnx")
    pooled = next(node for node in model.graph.node if "funnel.pooled" in node.output)
    pooled.op_type = "Softcap"
    with pytest.raises(onnx.checker.ValidationError, match="Softcap"):
        onnx.checker.check_model(model, full_check=True)
