"""Nodes are found in the funnel by the names that exports give them."""

import onnx
import pytest
from exported import Recipe

from funnel_export import FunnelSpec
from funnel_export.spec.funnel import segments_of
from funnel_export.targets.location import describe_place, nodes_named_in

SEGMENTS, DENSE = segments_of(FunnelSpec.parse("1:3:2"), 4), segments_of(None, 4)

PLACES = {
    "layers.0/MatMul.linear": "layer 0, entry, at full length",
    "layers.1/MatMul.linear": "layer 1, middle, on 1/2 of the length",
    "layers.2/Add.result": "layer 2, middle, on 1/2 of the length",
    "layers.3/Add.result": "layer 3, exit, at full length",
    "funnel/pool/ReduceMax.result": "the pooling before layer 1",
    "funnel/recover/Add.result": "the recovery before layer 3",
    "model/MatMul.linear": "outside the layers: embedding, positions, masks, final norm or head",
    "somebody/else": "",
}


@pytest.mark.parametrize("node", PLACES)
def test_a_place_is_named(node: str) -> None:
    assert describe_place(node, SEGMENTS) == PLACES[node]


def test_a_dense_model_has_layers_only() -> None:
    assert describe_place("layers.2/Add.result", DENSE) == "layer 2"
    assert describe_place("funnel/pool/Cast", DENSE) == ""


def test_every_node_of_an_export_has_a_place() -> None:
    for recipe in (Recipe(), Recipe(funnel=None)):
        for node in onnx.load(recipe.bundle().model.path, load_external_data=False).graph.node:
            assert describe_place(node.name, recipe.bundle().segments)


def test_nodes_are_found_whole_in_messages() -> None:
    names = ["layers.1/Add.add", "layers.1/Add.add_14", "layers.11/Add.add_1", "Add", ""]
    assert nodes_named_in("cannot compile 'layers.1/Add.add_14': no", names) == ["layers.1/Add.add_14"]
    both = nodes_named_in("layers.1/Add.add: (layers.11/Add.add_1)", names)
    assert both == ["layers.11/Add.add_1", "layers.1/Add.add"]
    assert nodes_named_in("nothing here", names) == []
