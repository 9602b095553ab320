"""ExportSpec: every field is checked when it is made."""

from typing import Any

import pytest

from funnel_export import FunnelSpec, SpecError
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.export import ExportSpec

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
