"""ExportSpec: every field is checked when it is made."""

from typing import Any

import pytest

from funnel_export import FunnelSpec, SpecError
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.stages import stages_of

GENERATION: dict[str, Any] = {"task": "text-generation", "dtype": "float32"}


def test_names_become_choices() -> None:
    spec = ExportSpec(**GENERATION)
    assert (spec.task, spec.dtype, spec.opset) == (Task.TEXT_GENERATION, Dtype.FLOAT32, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "translation"}, "unknown task"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"opset": 23}, "opset"),
        ({"opset": 20.0}, "opset"),
        ({"opset": True}, "opset"),
        ({"funnel": "1:3:2"}, "not a FunnelSpec"),
        ({"task": "token-classification", "logits": "last"}, "only text generation"),
        ({"funnel": FunnelSpec.parse("1:3:2", lookahead=True)}, "cannot generate text"),
    ],
    ids=str,
)
def test_invalid_fields_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ExportSpec(**{**GENERATION, **changes})


@pytest.mark.parametrize(
    ("funnel", "layer"),
    [(None, 3), ("1:3:2", 3), ("1:4:2", None), ("0:4:2", None), ("1:3:drop", 3), ("2:4:drop", 1)],
    ids=str,
)
def test_the_trimmed_layer_is_the_last_on_tokens(funnel: str | None, layer: int | None) -> None:
    spec = None if funnel is None else FunnelSpec.parse(funnel)
    past = ExportSpec(task=Task.TEXT_GENERATION_WITH_PAST, dtype=Dtype.FLOAT32, funnel=spec)
    assert past.trimmed_layer(4) == layer
    assert [stage.trimmed_layer for stage in stages_of(spec, 4).values()][-1] == layer
    assert ExportSpec(**GENERATION, funnel=spec, logits="last").trimmed_layer(4) == layer
    assert ExportSpec(**GENERATION, funnel=spec).trimmed_layer(4) is None
