"""Translates modules to ONNX with torch's exporter: all modules in one call, from fake tensors."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from onnxscript import opset18 as op  # the lowest opset of an export; later opsets may add attributes
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module


@dataclass(frozen=True, slots=True)
class Operand:
    """Dtype and axes of a tensor; dynamic axes have names."""

    dtype: torch.dtype
    axes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A module to translate, with its inputs and outputs in order."""

    module: nn.Module
    inputs: dict[str, Operand]
    outputs: tuple[str, ...]


def translate(pieces: Sequence[Piece], opset: int, mode: FakeTensorMode) -> list[ir.Model]:
    """An ONNX model for each piece; parameters are initializers with their names in the piece's module.

    All pieces share one call of `torch.onnx.export`, because every call loads the data of all operators again.

    Args:
        pieces: modules that share no tensors except parameters; these belong to `mode`.
        opset: ONNX opset version.
        mode: creates the example inputs.
    """
    together = _Together(pieces)
    args, axes, inputs, outputs = [], [], [], []
    for index, piece in enumerate(pieces):
        sizes: dict[str, int] = {}
        for name, operand in piece.inputs.items():
            dynamic = {i: axis for i, axis in enumerate(operand.axes) if isinstance(axis, str)}
            shape = [sizes.setdefault(a, 2 + len(sizes)) if isinstance(a, str) else a for a in operand.axes]
            with mode:
                args.append(torch.ones(shape, dtype=operand.dtype))
            axes.append({i: _own(axis, index) for i, axis in dynamic.items()})
            inputs.append(_own(name, index))
        outputs += [_own(name, index) for name in piece.outputs]
    model = _to_onnx(together.eval(), tuple(args), tuple(axes), opset, inputs, outputs)
    _rename_initializers(model, together)
    return [_extract(model, piece, index) for index, piece in enumerate(pieces)]


class _Together(nn.Module):
    """One module that runs all pieces: takes the inputs of all and returns the outputs of all."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(piece.module for piece in pieces)
        self.counts = [len(piece.inputs) for piece in pieces]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for piece, count in zip(self.pieces, self.counts, strict=True):
            result = piece(*tensors[:count])
            results += result if isinstance(result, tuple) else [result]
            tensors = tensors[count:]
        return tuple(results)


def _own(name: str, index: int) -> str:
    """The name of a piece's value, made unique among all pieces."""
    return f"{name}__{index}"


def _to_onnx(
    module: nn.Module,
    args: tuple[Tensor, ...],
    axes: tuple[dict[int, str], ...],
    opset: int,
    inputs: list[str],
    outputs: list[str],
) -> ir.Model:
    """Capture the module with `torch.export` and translate it, without the decomposition between the two.

    The decomposition captures everything again, which took more than half of the time. Only a few of the operators
    need it, and `_TRANSLATIONS` translates those. If another operator needs it, the decomposition runs after all.
    """
    dims = {name: torch.export.Dim(name) for name in dict.fromkeys(name for a in axes for name in a.values())}
    dynamic = tuple({i: dims[name] for i, name in a.items()} for a in axes)
    with _quiet(), torch.no_grad(), _any_length(), _uncached(), _only_the_graph():
        captured = torch.export.export(
            module, args, dynamic_shapes=(dynamic,), prefer_deferred_runtime_asserts_over_guards=True
        )
        translated: Callable[[], Any] = lambda: torch.onnx.export(  # noqa: E731
            captured,
            args,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(axes,),
            custom_translation_table=_TRANSLATIONS,
        )
        captured.run_decompositions = lambda *_, **__: captured
        try:
            with _computed_once(captured.graph):
                program = translated()
        except torch.onnx.OnnxExporterError as err:
            logging.getLogger(__name__).debug("decomposing, which takes twice as long: %s", err)
            del captured.run_decompositions
            program = translated()
    model: ir.Model = program.model
    return model


@contextlib.contextmanager
def _computed_once(graph: torch.fx.Graph) -> Iterator[None]:
    """Let the nodes of a captured graph keep the values that they were captured with, as long as nothing changes them.

    Torch's exporter computes every node again, to make type promotions explicit; that takes as long as all the rest of
    the translation. Nodes that it changes or adds, it still computes.
    """
    compute = torch.fx.Interpreter.run_node
    captured = {node: (node.target, node.args, node.kwargs) for node in graph.nodes if node.op == "call_function"}

    def keep(interpreter: torch.fx.Interpreter, node: torch.fx.Node) -> Any:
        unchanged = captured.get(node) == (node.target, node.args, node.kwargs)
        return node.meta["val"] if unchanged and "val" in node.meta else compute(interpreter, node)

    torch.fx.Interpreter.run_node = keep  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.fx.Interpreter.run_node = compute  # type: ignore[method-assign]


def _softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """Softmax computed in `dtype`; torch's own translation computes it in the input's dtype and casts the result."""
    return op.Softmax(cast(Any, op.Cast(x, to=dtype) if dtype != -1 else x), axis=dim)


def _cast(x: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: int = 0) -> Any:  # noqa: ARG001 - the signature of aten::to.dtype
    return op.Cast(x, to=dtype)


def _cast_on(
    x: Any,
    device: str,  # noqa: ARG001 - the signature of aten::to.device
    dtype: int,
    non_blocking: bool = False,  # noqa: ARG001
    copy: bool = False,  # noqa: ARG001
    memory_format: int = 0,  # noqa: ARG001
) -> Any:
    return op.Cast(x, to=dtype)


def _and(x: Any, y: Any) -> Any:
    return op.And(x, y)


_ATEN = torch.ops.aten
_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _ATEN.softmax.int: _softmax,
    _ATEN.to.dtype: _cast,
    _ATEN.to.device: _cast_on,
    _ATEN.__and__.Tensor: _and,
}


def _rename_initializers(model: ir.Model, together: nn.Module) -> None:
    """Name initializers after the parameters of the pieces; tied parameters get the first of their names."""
    first = {id(p): name for name, p in together.named_parameters()}
    names = {name: first[id(p)] for name, p in together.named_parameters(remove_duplicate=False)}
    for value in list(model.graph.initializers.values()):
        name = str(value.name)
        value.name = names.get(name, name)


def _extract(model: ir.Model, piece: Piece, index: int) -> ir.Model:
    """The model of one piece, with the piece's own names."""
    inputs, outputs = ([_own(name, index) for name in names] for names in (piece.inputs, piece.outputs))
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    found = dict(graph.initializers)
    graph.initializers.clear()
    for value in (found[name] for name in model.graph.initializers if name in found):  # `extract` loses the order
        value.name = re.sub(r"^pieces\.\d+\.", "", str(value.name))  # a shared one has the name of its first piece
        graph.register_initializer(value)
    for values, names in ((graph.inputs, piece.inputs), (graph.outputs, piece.outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            axes = [d if isinstance(d, int) else re.sub(rf"{_own('', index)}\b", "", str(d.value)) for d in value.shape]
            value.shape = ir.Shape(axes)
    return ir.Model(graph, ir_version=model.ir_version)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's messages about torchvision and axis names, which users cannot act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _uncached() -> contextlib.AbstractContextManager[None]:
    """Keep no results of fake tensors: few calls of a capture are alike, and looking for them takes a fifth of it."""
    patch: contextlib.AbstractContextManager[None] = dynamo_config.patch(fake_tensor_cache_enabled=False)
    return patch


@contextlib.contextmanager
def _only_the_graph() -> Iterator[None]:
    """Capture no more than a translation needs, which takes a quarter less time.

    Not the lines of Python that every node comes from; no code of a graph that nobody runs; and no changes of the
    gradient mode that change nothing, because each of them splits the graph, which is then put together again.
    """

    def enter(self: torch.no_grad) -> None:
        self.prev = torch.is_grad_enabled()
        if self.prev:
            torch.set_grad_enabled(False)

    def leave(self: torch.no_grad, *_: object) -> None:
        if torch.is_grad_enabled() != self.prev:
            torch.set_grad_enabled(self.prev)

    fx_config: Any = torch.fx.config
    before = torch.no_grad.__enter__, torch.no_grad.__exit__
    traces = getattr(fx_config, "do_not_emit_stack_traces", False)
    with _use_lazy_graph_module(True):
        torch.no_grad.__enter__, torch.no_grad.__exit__ = enter, leave  # type: ignore[method-assign]
        fx_config.do_not_emit_stack_traces = True  # torch before 2.12 does not read it
        try:
            yield
        finally:
            torch.no_grad.__enter__, torch.no_grad.__exit__ = before  # type: ignore[method-assign]
            fx_config.do_not_emit_stack_traces = traces


def _any_length() -> contextlib.AbstractContextManager[None]:
    """Allow dynamic axes of size 0 and 1, as `torch.onnx.export` does when it captures a module itself."""
    config: Any = torch.fx.experimental._config
    patch: contextlib.AbstractContextManager[None] = config.patch(backed_size_oblivious=True)
    return patch
