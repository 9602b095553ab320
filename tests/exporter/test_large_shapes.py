"""Export with Gemma2-2B shapes from sparse files; the peak memory shows that no weight is loaded."""

from pathlib import Path

import onnx
import pytest
from measure import measured
from sparse import make_sparse_checkpoint

EXPORT = """
import json, sys, funnel_export
from measure import peak_gb
funnel_export.export(*sys.argv[1:], funnel="6:20:2", task="text-generation")
print(json.dumps({"peak_gb": peak_gb()}))
"""


@pytest.mark.slow
def test_weights_of_2b_shapes_are_not_loaded(tmp_path: Path) -> None:
    size = make_sparse_checkpoint(tmp_path / "checkpoint", "2B")
    done = measured(EXPORT, str(tmp_path / "checkpoint"), str(tmp_path / "out"))
    assert size > 5e9
    assert done["peak_gb"] < 1.5  # torch and transformers alone take about half of it
    graph = tmp_path / "out" / "model.onnx"
    assert graph.stat().st_size < 2e6
    model = onnx.load(graph, load_external_data=False).graph
    outside = [t for t in model.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) == 26 * 11 + 2
