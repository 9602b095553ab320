"""The funnel's operations as ONNX text: pooling, recovery, masks and positions as they are exported.

Each is traced, with the settings of the export, from the function in `funnel_export.funnel` that eager PyTorch runs.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from funnel_export.exporter.assemble import tidy
from funnel_export.exporter.translate import Operand, Piece, translate
from funnel_export.funnel.maps import make_maps
from funnel_export.funnel.masks import attention_bias
from funnel_export.funnel.parts import ModulePart, Part
from funnel_export.funnel.pooling import pool
from funnel_export.funnel.recovery import recover, recovery_part
from funnel_export.funnel.rows import Rows
from funnel_export.funnel.windows import read_slots, slot_positions
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions
from funnel_export.spec.funnel import MAPS, FunnelSpec

WIDTH, OPSET = 8, 20
"""Width of the hidden states and opset of the texts."""

STATES = Operand(torch.float32, ("batch", "column", WIDTH))
NUMBERS = Operand(torch.int64, ("batch", "column"))
SLOTS = Operand(torch.int64, (1, "slot"))
ONE_PER_ROW = Operand(torch.int64, ("batch", 1))

_spec = partial(FunnelSpec, pool_layer=0, recover_layer=1)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: its function, inputs and outputs."""

    name: str
    about: str
    """A description of the computation, for the first line of the text."""
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, Operand]
    outputs: tuple[str, ...]


def funnel_ops(stride: int = 2) -> Iterator[Op]:
    """Every operation of a funnel, with each of its options."""
    yield Op(
        "rows",
        "where each row's tokens stand: number of every column, tokens in the row, column of its first token",
        _rows,
        {"attention_mask": NUMBERS},
        ("numbers", "length", "first"),
    )
    yield from _positions(stride)
    yield from _reads(stride)
    yield from _masks(bidirectional=False)
    yield from _pooling(stride)
    yield from _recovery(stride)
    yield from _masks(bidirectional=True)  # last: an operation's place decides how torch numbers the axes of later ones


def _positions(stride: int) -> Iterator[Op]:
    for positions in SlotPositions:
        for lookahead in (False, True):
            yield Op(
                f"positions_{positions}{'_lookahead' * lookahead}",
                f"position of each slot, -1 for slots that a row does not have; {positions}, stride {stride}",
                partial(slot_positions, spec=_spec(stride=stride, slot_positions=positions, lookahead=lookahead)),
                {"slots": SLOTS, "length": ONE_PER_ROW},
                ("positions",),
            )


def _reads(stride: int) -> Iterator[Op]:
    for lookahead in (False, True):
        yield Op(
            f"read_out{'_lookahead' * lookahead}",
            f"the slot that each token reads; stride {stride}",
            partial(read_slots, spec=_spec(stride=stride, lookahead=lookahead)),
            {"numbers": NUMBERS},
            ("reads",),
        )


def _masks(*, bidirectional: bool) -> Iterator[Op]:
    for kind, window in (("full", None), ("sliding", 5)):
        yield Op(
            f"mask_{kind}{'_bidirectional' * bidirectional}",
            "what is added to the scores: 0 where a query sees a key"
            + (f"; window {window}" if window else "")
            + ("; bidirectional" if bidirectional else ""),
            partial(attention_bias, sliding_window=window, dtype=STATES.dtype, bidirectional=bidirectional),
            {"queries": Operand(torch.int64, ("batch", "query")), "keys": Operand(torch.int64, ("batch", "key"))},
            ("bias",),
        )


def _pooling(stride: int) -> Iterator[Op]:
    for pooling in Pooling:
        yield Op(
            f"pool_{pooling}",
            f"from the tokens of each window to one slot; {pooling}, stride {stride}",
            partial(pool, spec=_spec(stride=stride, pooling=pooling)),
            {"x": STATES, "slots": SLOTS, "first": ONE_PER_ROW, "length": ONE_PER_ROW},
            ("pooled",),
        )


def _recovery(stride: int) -> Iterator[Op]:
    short = Operand(STATES.dtype, ("batch", "slot", WIDTH))
    operands = {"x": STATES, "pooled": short, "middle": short, "reads": NUMBERS}
    for recovery in (each for each in Recovery if each is not Recovery.LINEAR):
        yield Op(
            f"recover_{recovery}",
            f"from the slots back to every token; {recovery}",
            partial(recover, spec=_spec(stride=stride, recovery=recovery)),
            operands,
            ("recovered",),
        )
    spec = _spec(stride=stride, recovery=Recovery.LINEAR)
    yield _with_maps("recover_linear", f"from the slots back to every token; linear, stride {stride}", spec, operands)
    dropped = _spec(stride=1, drop=True, recovery=Recovery.LINEAR)
    yield _with_maps("recover_dropped", "past layers that are dropped; linear", dropped, {"x": STATES})


def _with_maps(name: str, about: str, spec: FunnelSpec, operands: dict[str, Operand]) -> Op:
    """A recovery with maps, whose weights are inputs."""
    maps = make_maps(spec, WIDTH)
    assert maps is not None
    weights, count = dict(maps.named_parameters()), len(operands) + 1

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(weights, tensors[count:], strict=True))
        bound = _Call(lambda *inner: functional_call(maps, given, inner))
        part: Part = ModulePart(bound, MAPS) if spec.drop else recovery_part(spec, bound)
        result = part(*tensors[:count])
        assert isinstance(result, Tensor)
        return result

    shapes = {f"{MAPS}.{each}": Operand(weight.dtype, tuple(weight.shape)) for each, weight in weights.items()}
    inputs = {each.replace(".", "_"): operand for each, operand in shapes.items()}
    return Op(name, about, call, {**operands, "numbers": NUMBERS, **inputs}, ("recovered",))


def _rows(attention_mask: Tensor) -> tuple[Tensor, ...]:
    rows = Rows.of(attention_mask != 0, 0)
    return rows.keys, rows.length, rows.first


def describe_ops(stride: int = 2) -> dict[str, str]:
    """Every operation by name, as ONNX text that `onnx.parser.parse_model` reads."""
    ops = list(funnel_ops(stride))
    models = translate([Piece(_Call(op.function), op.inputs, op.outputs) for op in ops], OPSET, FakeTensorMode())
    return {op.name: _text(op, model) for op, model in zip(ops, models, strict=True)}


def _text(op: Op, model: ir.Model) -> str:
    optimizer.optimize(model)
    tidy(model)
    _name_by_content(model)
    model.graph.name = op.name
    return f"# {op.name}: {op.about}\n{onnx.printer.to_text(ir.to_proto(model))}\n"


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def _name_by_content(model: ir.Model) -> None:
    """Name constants after their values and other values after their ops; remove the names of tools and nodes."""
    model.producer_name, model.producer_version = None, None
    constants = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    for value in constants:
        assert value.const_value is not None
        node = ir.node("Constant", [], attributes={"value": ir.tensor(value.const_value.numpy())})
        node.outputs[0].name = _constant_name(value.const_value)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        model.graph.insert_before(model.graph[0], node)
    counts = Counter[str]()
    for node in model.graph:
        node.name = None
        for value in node.outputs:
            if value.is_graph_output():
                continue
            value.type = value.shape = None  # the text would list all of them in one long line
            if node.op_type != "Constant":
                counts[node.op_type] += 1
                value.name = f"{node.op_type.lower()}_{counts[node.op_type]}"


def _constant_name(tensor: ir.TensorProtocol) -> str:
    """`int64_minus_1` for the number -1, `int64s_2_8` for the list [2, 8]."""
    numbers = [_digits(number) for number in tensor.numpy().reshape(-1)]
    return "_".join((f"{tensor.dtype.numpy().name}{'s' * len(tensor.shape)}", *numbers))


def _digits(number: Any) -> str:
    if number == torch.iinfo(torch.int64).max:
        return "max"
    return re.sub(r"\W", "_", f"{number:g}".replace("-", "minus_"))
