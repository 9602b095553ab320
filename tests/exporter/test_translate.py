"""Translation of several modules in one call, and of operators that need a decomposition."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exported import Recipe
from onnxscript import optimizer
from onnxscript.rewriter._matcher import SimplePatternMatcher
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from funnel_export import export
from funnel_export.exporter import translate as module
from funnel_export.exporter.assemble import _optimize
from funnel_export.exporter.translate import Operand, Piece, translate
from funnel_export.spec.choices import Dtype

FLOATS = Operand(torch.float32, ("row", 3))


class Scaled(nn.Module):
    """Has a parameter."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        with mode:
            self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Frozen(nn.Module):
    """Switches gradients off, as Hugging Face's rotary embeddings do."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Either(nn.Module):
    """Uses `aten::__or__`, which neither this package nor torch translates."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return ((x > 0) | (y > 0)).to(torch.float32), x.sum(0)


class Roundabout(nn.Module):
    """Casts and reshapes more than it needs to."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.to(torch.float16).to(torch.float16).to(torch.float32).reshape(-1).reshape(-1, 3))


class Mixed(nn.Module):
    """Uses operators that promote integers, before others that take what they give."""

    def forward(self, n: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(n / 2), (n + x) * x


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_pieces_keep_their_names() -> None:
    mode = FakeTensorMode()
    pieces = [
        Piece(Scaled(mode), {"x": FLOATS}, ("y",)),
        Piece(nn.Tanh(), {"x": Operand(torch.float32, ("row", "row"))}, ("y",)),
    ]
    first, second = translate(pieces, 20, mode)
    assert list(first.graph.initializers) == ["scale"]
    assert [[str(d) for d in v.shape or ()] for v in (*first.graph.inputs, *first.graph.outputs)] == [["row", "3"]] * 2
    assert (first.graph.inputs[0].name, second.graph.inputs[0].name, second.graph.outputs[0].name) == ("x", "x", "y")
    x = np.full((1, 1), 0.5, np.float32)
    np.testing.assert_allclose(run(second, x=x)[0], np.tanh(x), rtol=1e-6)


def test_promotions_of_types_are_made_explicit() -> None:
    halves, numbers = Operand(torch.float16, ("row",)), Operand(torch.int64, ("row",))
    (model,) = translate([Piece(Mixed(), {"n": numbers, "x": halves}, ("one", "other"))], 20, FakeTensorMode())
    n, x = np.array([1, 2, 3]), np.array([0.25, 0.5, 0.75], np.float16)
    wants = Mixed()(torch.from_numpy(n), torch.from_numpy(x))
    for got, want in zip(run(model, n=n, x=x), wants, strict=True):
        assert got.dtype == want.numpy().dtype
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_nothing_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[object] = []
    monkeypatch.setattr(torch.fx.Interpreter, "call_function", lambda *call: computed.append(call))
    translate([Piece(nn.Tanh(), {"x": FLOATS}, ("y",))], 20, FakeTensorMode())
    assert computed == []


def test_gradients_that_are_off_are_not_switched_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each switch splits the captured graph. Afterwards torch is as it was."""
    made: list[object] = []
    create = torch.fx.Graph.create_node

    def watched(graph: torch.fx.Graph, kind: str, target: object, *others: object, **named: object) -> torch.fx.Node:
        made.append(target)
        return create(graph, kind, target, *others, **named)

    monkeypatch.setattr(torch.fx.Graph, "create_node", watched)
    (model,) = translate([Piece(Frozen(), {"x": FLOATS}, ("y",))], 20, FakeTensorMode())
    assert [node.op_type for node in model.graph] == ["Tanh"]
    assert torch.ops.aten.tanh.default in made
    assert torch._C._set_grad_enabled not in made
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert not torch.fx.config.do_not_emit_stack_traces


def test_the_optimizer_finds_what_it_finds_without_our_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules remove two of the casts and join the reshapes."""
    (model,) = translate([Piece(Roundabout(), {"x": FLOATS}, ("y",))], 20, FakeTensorMode())
    ours, theirs = (ir.from_proto(ir.to_proto(model)) for _ in range(2))
    compared: list[str] = []
    match = SimplePatternMatcher.match

    def counted(matcher: Any, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
        compared.append(node.op_type)
        return match(matcher, model, graph, node, **options)

    monkeypatch.setattr(SimplePatternMatcher, "match", counted)
    _optimize(ours, Dtype.FLOAT32)
    few = len(compared)
    optimizer.optimize(theirs)
    assert 0 < few < (len(compared) - few) / 4
    assert ir.to_proto(ours) == ir.to_proto(theirs)
    assert len(ours.graph) < len(model.graph)


@pytest.mark.traces
def test_an_export_is_not_decomposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decompose(*_: object, **__: object) -> None:
        raise AssertionError("this takes twice as long")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", decompose)
    export(Recipe().checkpoint(), tmp_path / "out", funnel="1:3:2", task="text-generation")


def test_an_operator_without_translation_is_decomposed() -> None:
    assert torch.ops.aten.__or__.Tensor not in module._TRANSLATIONS
    (model,) = translate([Piece(Either(), {"x": FLOATS, "y": FLOATS}, ("either", "total"))], 20, FakeTensorMode())
    assert "Or" in {node.op_type for node in model.graph}
    x = np.array([[1, -1, -1]], np.float32)
    either, total = run(model, x=x, y=np.array([[-1, -1, 1]], np.float32))
    np.testing.assert_array_equal(either, [[1, 0, 1]])
    np.testing.assert_array_equal(total, x[0])
