"""FunnelSpec: which values it accepts, that others raise SpecError, and that parsing is the inverse of writing."""

import dataclasses
import json
from typing import Any

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import specs

from funnel_export import FunnelSpec
from funnel_export.errors import SpecError
from funnel_export.report.drawing import draw_text
from funnel_export.report.funnel_panel import draw_funnel
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions, Task
from funnel_export.spec.funnel import Segment, boundary_names, segments_of
from funnel_export.targets.location import describe_place

any_spec = specs(40)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
field_names = [field.name for field in dataclasses.fields(FunnelSpec)]
MINIMAL = {"pool_layer": 6, "recover_layer": 20, "stride": 2}


@given(any_spec)
def test_dict_round_trip(spec: FunnelSpec) -> None:
    values = json.loads(json.dumps(spec.to_dict()))
    assert values == spec.to_dict()
    assert FunnelSpec.from_dict(values) == spec
    assert {type(value) for value in spec.to_dict().values()} == {int, str, bool}


@given(any_spec)
def test_text_round_trip(spec: FunnelSpec) -> None:
    options = {name: getattr(spec, name) for name in field_names[3:] if name != "drop"}
    assert FunnelSpec.parse(str(spec), **options) == spec


def test_defaults_are_those_of_the_readme() -> None:
    spec = FunnelSpec.parse(" 6:20:2 ")
    assert spec.to_dict() == MINIMAL | {
        "pooling": "mean",
        "recovery": "delta",
        "slot_positions": "original",
        "lookahead": False,
    }
    assert FunnelSpec.from_dict(MINIMAL) == spec


@given(st.text(max_size=12) | st.from_regex(r"[-+0-9:. ]{0,12}", fullmatch=True))
def test_any_text_is_a_funnel_or_an_error(text: str) -> None:
    try:
        spec = FunnelSpec.parse(text)
    except SpecError:
        return
    numbers = text.strip().removesuffix("drop").split(":")
    assert [int(number or 1) for number in numbers] == [spec.pool_layer, spec.recover_layer, spec.stride]
    assert spec.drop == text.strip().endswith("drop")


@given(json_values | st.dictionaries(st.sampled_from(field_names), json_values))
def test_any_json_is_a_funnel_or_an_error(values: Any) -> None:
    try:
        spec = FunnelSpec.from_dict(values)
    except SpecError:
        return
    assert values.items() <= {"drop": False, **spec.to_dict()}.items()


@given(st.fixed_dictionaries({**dict.fromkeys(MINIMAL, st.integers(-1, 5))}), st.sampled_from(field_names), json_values)
def test_any_value_is_accepted_or_refused(values: dict[str, Any], name: str, value: Any) -> None:
    values[name] = value
    try:
        spec = FunnelSpec.from_dict(values)
    except SpecError:
        return
    found = {"drop": False, **spec.to_dict()}[name]
    assert found == value
    assert type(found) is type(value)
    assert 0 <= spec.pool_layer < spec.recover_layer
    assert spec.stride >= 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "P:R:S"),
        ("6:20", "P:R:S"),
        ("6:20:2:1", "P:R:S"),
        ("-1:20:2", "P:R:S"),
        ("6:20:2.0", "P:R:S"),
        ("٦:20:2", "P:R:S"),
        ("1234567:20:2", "P:R:S"),
        ("6:6:2", "pool_layer < recover_layer"),
        ("6:5:2", "pool_layer < recover_layer"),
        ("6:20:0", "stride >= 1"),
        ("6:20:Drop", "P:R:drop"),
        ("6:6:drop", "pool_layer < recover_layer"),
    ],
)
def test_bad_text_is_explained(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        FunnelSpec.parse(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stride": True}, "whole number"),
        ({"pool_layer": 6.0}, "whole number"),
        ({"recover_layer": "20"}, "whole number"),
        ({"lookahead": 1}, "true or false"),
        ({"lookahead": None}, "true or false"),
        ({"pooling": "median"}, "mean | max | first | last"),
        ({"recovery": None}, "delta | add | average | replace"),
        ({"slot_positions": []}, "original | compact"),
        ({"drop": 1}, "true or false"),
        ({"drop": True}, "has no slots\n  got: stride 2"),
        ({"drop": True, "stride": 1, "pooling": "max", "recovery": "add"}, "got: pooling max, recovery add"),
        ({"drop": True, "stride": 1, "lookahead": True}, "got: lookahead True"),
        ({"depth": 3}, "fields"),
    ],
)
def test_bad_dict_is_explained(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        FunnelSpec.from_dict(MINIMAL | change)
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", list(MINIMAL))
def test_missing_field_is_named(missing: str) -> None:
    with pytest.raises(SpecError, match=missing):
        FunnelSpec.from_dict({name: value for name, value in MINIMAL.items() if name != missing})


@pytest.mark.parametrize("values", [None, [], "6:20:2", 3, [("pool_layer", 6)]])
def test_values_other_than_a_dict_are_refused(values: object) -> None:
    with pytest.raises(SpecError, match="object"):
        FunnelSpec.from_dict(values)


def test_bad_option_beside_the_text_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown pooling"):
        FunnelSpec.parse("6:20:2", pooling="median")


@given(any_spec, st.integers(2, 50))
def test_fits_models_with_enough_layers(spec: FunnelSpec, num_layers: int) -> None:
    if spec.drop and (spec.pool_layer, spec.recover_layer) == (0, num_layers):
        return
    if spec.recover_layer <= num_layers:
        spec.validate(num_layers)
        return
    with pytest.raises(SpecError, match=f"recover_layer <= {num_layers}") as caught:
        spec.validate(num_layers)
    suggestion = str(caught.value).rpartition("--funnel ")[2]
    FunnelSpec.parse(suggestion).validate(num_layers)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("lookahead", [False, True])
def test_lookahead_is_refused_for_generation_only(task: Task, lookahead: bool) -> None:
    spec = FunnelSpec(**MINIMAL, lookahead=lookahead)
    if lookahead and task in (Task.TEXT_GENERATION, Task.TEXT_GENERATION_WITH_PAST):
        with pytest.raises(SpecError, match="lookahead"):
            spec.validate_task(task)
    else:
        spec.validate_task(task)


@given(any_spec.filter(lambda spec: not spec.drop), st.integers(1, 60))
def test_number_of_slots_is_the_number_of_windows(spec: FunnelSpec, num_tokens: int) -> None:
    assert spec.num_slots(num_tokens) == len(oracle.list_windows(num_tokens, spec.stride, spec.lookahead))


def test_a_funnel_is_a_frozen_value() -> None:
    spec = FunnelSpec(**MINIMAL, pooling="max", recovery="replace", slot_positions="compact")
    assert (spec.pooling, spec.recovery, spec.slot_positions) == (Pooling.MAX, Recovery.REPLACE, SlotPositions.COMPACT)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.stride = 3  # type: ignore[misc]
    assert len({spec, dataclasses.replace(spec)}) == 1


def test_segments_have_layers_and_lengths() -> None:
    entry, middle, exit_ = FunnelSpec.parse("2:5:3").segments(7)
    assert [(s.name, [*s.layers], s.stride, s.pooled) for s in (entry, middle, exit_)] == [
        ("entry", [0, 1], 1, False),
        ("middle", [2, 3, 4], 3, True),
        ("exit", [5, 6], 1, False),
    ]
    assert [segment.length(8) for segment in (entry, middle, exit_)] == [8, 3, 8]
    assert [segment.name for segment in FunnelSpec.parse("0:7:2").segments(7)] == ["middle"]
    dropped = FunnelSpec.parse("2:5:drop", recovery="linear").segments(7)
    assert [(s.name, [*s.layers], s.pooled, s.recovers) for s in dropped] == [
        ("entry", [0, 1], False, False),
        ("middle", [], False, True),
        ("exit", [5, 6], False, False),
    ]
    assert boundary_names(dropped)[1:4] == ["layers.1", "funnel.recovered", "layers.5"]
    assert [segment.name for segment in segments_of(None, 7)] == ["dense"]
    with pytest.raises(SpecError, match="beyond the model's layers"):
        FunnelSpec.parse("2:8:2").segments(7)
    with pytest.raises(SpecError, match="drops all layers"):
        FunnelSpec.parse("0:7:drop").segments(7)


def test_two_funnels_have_different_boundaries_and_places() -> None:
    """No `FunnelSpec` makes two funnels yet, but all code that reads segments must tell them apart."""
    first, second = FunnelSpec.parse("0:2:2"), FunnelSpec.parse("2:3:4")
    segments = [Segment("a", range(2), first), Segment("b", range(2, 3), second, label="second")]
    assert boundary_names(segments) == [
        *("funnel.pooled", "layers.0", "layers.1", "funnel.recovered"),
        *("second.pooled", "layers.2", "second.recovered"),
    ]
    assert describe_place("second/pool/Gather.x", segments) == "the pooling before layer 2"
    assert describe_place("layers.2/MatMul.x", segments) == "layer 2, b, on 1/4 of the length"
    assert draw_text(segments).count("▼ pool") == 2
    assert draw_funnel(segments).png()
