"""Calibrates a quantization: runs texts through a model part by part, and rounds each part's products for them.

A part is a decoder layer or the recovery (`funnel_export.funnel.parts`). It sees what the parts before it, which are
rounded already, make of the texts. The model has its funnel: layers in the middle see slots. The sums of one part's
products are in memory at a time; the results of all parts are kept until the end, since later parts may read them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.funnel import patch_forward, unpatch_forward
from funnel_export.funnel.parts import Part, Shape, call_part
from funnel_export.progress import Progress
from funnel_export.quality.gptq import Product, library
from funnel_export.quality.rows import TokenRows
from funnel_export.quantization.write import Plan, Rows, naming, read_rows, scale_dtype
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.verify.reference import load_checkpoint

CHUNK = 1 << 24
"""Most weights that are rounded at once."""
OUTSIDE = ""
"""The step of products that no part calls: the head."""


class _Stop(Exception):  # noqa: N818 - it ends a forward, and is no error
    """Ends a forward when everything that it should see was seen."""


@dataclass(eq=False)
class _Text:
    """A text, and what the parts that are rounded already made of it."""

    ids: Sequence[int]
    results: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


class _Runner:
    """A part runner that takes known results, and ends the forward after one part."""

    def __init__(self) -> None:
        self.text = _Text(())
        self.last = OUTSIDE
        self.running = OUTSIDE

    def __call__(self, name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        if name in self.text.results:
            return self.text.results[name]
        self.running = name
        results = call_part(name, part, *tensors, shapes=shapes)
        self.running = OUTSIDE
        if name == self.last:
            raise _Stop
        self.text.results[name] = results
        return results


@dataclass(eq=False)
class Calibration:
    """Rounds the products of a model by GPTQ, on texts."""

    source: Checkpoint
    spec: ExportSpec
    """What is exported, with a quantization."""
    rows: TokenRows
    """The texts; each row is read alone."""
    progress: Progress

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        """What the recipe of the weights says: the digest of the rows, the number of tokens, and the library."""
        tokens = sum(len(row.tokens) for row in self.rows.rows)
        return {"data_sha256": self.rows.sha256, "tokens": tokens, "library": library()}

    def solve(self, plans: Sequence[Plan]) -> Iterator[tuple[Plan, Rows]]:
        """Round the products that the model computes, in its order; a layer that a funnel drops has none of them."""
        self.progress("loading the model")
        # float16 overflows in these models, and PyTorch computes it slowly on CPUs
        dtype = torch.float32 if self.spec.dtype is Dtype.FLOAT16 else getattr(torch, self.spec.dtype)
        model, runner = load_checkpoint(self.source, self.spec, dtype), _Runner()
        patch_forward(model, self.spec.funnel, runner)
        try:
            texts = [_Text(row.tokens.tolist()) for row in self.rows.rows]
            for step, names in _steps(model, runner, _linears(model, plans), texts[0]).items():
                yield from self._solve_step(model, runner, step, [each for each in plans if each.name in names], texts)
        finally:
            # The patched forward refers to the model, which would stay in memory while the graphs are traced.
            unpatch_forward(model)

    def _solve_step(
        self, model: Any, runner: _Runner, step: str, plans: Sequence[Plan], texts: Sequence[_Text]
    ) -> Iterator[tuple[Plan, Rows]]:
        """Round the products of one step: all of them first see the texts."""
        linears = _linears(model, plans)
        products = {plan.name: self._product(plan, linears[plan.name]) for plan in plans}

        def see(name: str, inputs: Tensor) -> None:
            products[name].see(inputs)
            if step == OUTSIDE:
                raise _Stop  # before the head computes logits, the largest tensor of all

        runner.last = step
        with _watched(linears, see):
            for text in texts:
                _run(model, runner, text)
        for plan in plans:
            product = products.pop(plan.name)
            with naming(plan.name):
                product.finish()
            yield plan, self._rounded(plan, product, linears[plan.name].weight)

    def _product(self, plan: Plan, linear: Any) -> Product:
        assert self.spec.quantization is not None
        assert plan.bits is not None
        symmetric = self.spec.quantization.symmetric
        return Product(linear, plan.bits, plan.block_size, symmetric=symmetric, dtype=scale_dtype(self.spec))

    def _rounded(self, plan: Plan, product: Product, weight: Tensor) -> Rows:
        """The codes of a product, some outputs at a time; the model gets the rounded weights."""
        for first, values in read_rows(self.source.path, plan.source, CHUNK):
            with naming(plan.name):
                rounded = product.round(torch.from_numpy(values))
            weight[first : first + len(values)] = torch.from_numpy(rounded.values())
            yield first, rounded


def _linears(model: Any, plans: Sequence[Plan]) -> dict[str, Any]:
    """The modules of products, by the names of their weights."""
    return {plan.name: model.get_submodule(plan.name.removesuffix(".weight")) for plan in plans}


def _steps(model: Any, runner: _Runner, linears: Mapping[str, Any], text: _Text) -> dict[str, set[str]]:
    """The products that each part calls, in the order of the parts; those that no part calls come last."""
    found: dict[str, set[str]] = {}

    def see(name: str, _: Tensor) -> None:
        found.setdefault(runner.running, set()).add(name)
        if runner.running == OUTSIDE:
            raise _Stop

    with _watched(linears, see):
        _run(model, runner, _Text(text.ids))
    return found


@contextlib.contextmanager
def _watched(linears: Mapping[str, Any], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call a function with the name and the inputs of every product that is computed."""

    def hook(name: str, _: Any, inputs: tuple[Tensor, ...]) -> None:
        see(name, inputs[0])

    handles = [linear.register_forward_pre_hook(partial(hook, name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: Any, runner: _Runner, text: _Text) -> None:
    """Run a text alone, as far as the runner or a hook lets it."""
    runner.text = text
    with contextlib.suppress(_Stop), torch.no_grad():
        model(input_ids=torch.tensor([text.ids]), use_cache=False)
