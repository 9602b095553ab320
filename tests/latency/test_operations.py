"""Operation counts, compared with torch's own counter and by hand."""

import pytest
import torch
from models import tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from funnel_export import FunnelSpec, apply_funnel
from funnel_export.families.gemma2 import GEMMA2, Gemma2Architecture
from funnel_export.latency.operations import count_operations, layer_lengths, predicted_ratio
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.export import ExportSpec


def exported(task: Task, funnel: FunnelSpec | None) -> ExportSpec:
    """An export in float32."""
    return ExportSpec(task=task, dtype=Dtype.FLOAT32, funnel=funnel)


@pytest.mark.parametrize("recovery", ["delta", "linear"])
@pytest.mark.parametrize("funnel", [None, "1:3:2", "0:4:3", "1:3:drop"])
@pytest.mark.parametrize("length", [1, 6, 17])
def test_equals_the_count_of_torch(funnel: str | None, length: int, recovery: str) -> None:
    model, spec = tiny_model(dtype=torch.float32), FunnelSpec.parse(funnel, recovery=recovery) if funnel else None
    if spec:
        apply_funnel(model, spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, length, dtype=torch.long), use_cache=False)
    # Neither counts elementwise operations; RoPE's angles are a product in some versions of transformers.
    counted = count_operations(
        GEMMA2, Gemma2Architecture.of(model.config.to_dict()), exported(Task.TEXT_GENERATION, spec), length
    ).total
    assert counted == pytest.approx(counter.get_total_flops(), rel=5e-4)


def test_lengths_of_layers() -> None:
    assert layer_lengths(5, FunnelSpec.parse("1:3:2"), 7) == [7, 4, 4, 7, 7]
    assert layer_lengths(5, FunnelSpec.parse("1:3:drop"), 7) == [7, 0, 0, 7, 7]
    assert layer_lengths(2, None, 7) == [7, 7]


def test_a_larger_stride_saves_more() -> None:
    config = Gemma2Architecture.of(tiny_config(num_hidden_layers=4).to_dict())
    dense = predicted_ratio(GEMMA2, config, exported(Task.FEATURE_EXTRACTION, None), 4096)
    half = predicted_ratio(GEMMA2, config, exported(Task.FEATURE_EXTRACTION, FunnelSpec.parse("1:3:2")), 4096)
    quarter = predicted_ratio(GEMMA2, config, exported(Task.FEATURE_EXTRACTION, FunnelSpec.parse("1:3:4")), 4096)
    assert quarter < half < dense == 1
