"""Ports: inputs are found by their kind, and the sizes of dynamic axes by the shapes of the inputs."""

from collections.abc import Mapping

import pytest

from funnel_export.bundle.ports import Port, PortKind, dynamic_axes, feed, sizes_of
from funnel_export.errors import BundleError, SpecError

TOKENS = Port(name="ids", kind=PortKind.TOKENS, dtype="int64", shape=["batch_size", "sequence_length"])
STATE = Port(name="keys", kind=PortKind.STATE, dtype="float32", shape=["batch_size", 2, "past_length", 16])


def test_inputs_have_the_values_of_their_kinds() -> None:
    assert feed([TOKENS], {PortKind.MASK: 2, PortKind.TOKENS: 1}) == {"ids": 1}
    with pytest.raises(BundleError, match=r"(?s)inputs of unsupported kinds.*keys \(state\)"):
        feed([TOKENS, STATE], {PortKind.TOKENS: 1})


def test_each_axis_is_there_once_in_the_order_of_its_first_use() -> None:
    assert dynamic_axes([TOKENS, STATE]) == ["batch_size", "sequence_length", "past_length"]


def test_sizes_are_those_of_the_inputs() -> None:
    shapes = {"ids": (3, 7), "keys": (3, 2, 0, 16)}
    assert sizes_of([TOKENS, STATE], shapes) == {"batch_size": 3, "sequence_length": 7, "past_length": 0}


@pytest.mark.parametrize(
    ("shapes", "wrong"),
    [
        ({"ids": (3,), "keys": (3, 2, 5, 16)}, "ids"),
        ({"ids": (3, 7, 1), "keys": (3, 2, 5, 16)}, "ids"),
        ({"ids": (3, 7), "keys": (3, 2, 5, 8)}, "keys"),
        ({"ids": (3, 7), "keys": (4, 2, 5, 16)}, "keys"),
    ],
    ids=["too few axes", "too many axes", "a fixed size", "two sizes of one axis"],
)
def test_inputs_of_other_shapes_are_refused(shapes: Mapping[str, tuple[int, ...]], wrong: str) -> None:
    with pytest.raises(SpecError, match=rf"(?s)does not have the graph's shape.*got: {wrong} \["):
        sizes_of([TOKENS, STATE], shapes)
