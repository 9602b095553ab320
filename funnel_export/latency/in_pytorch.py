"""Hugging Face's model with a bundle's weights, as a runner times it: a single pass, or steps with its own cache."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funnel_export.bundle.load import Bundle
from funnel_export.funnel import apply_funnel
from funnel_export.latency.in_target import Ids, last_output
from funnel_export.spec.choices import Dtype
from funnel_export.verify.reference import load_model, output_options


class TorchModel:
    """The model in eager PyTorch or under torch.compile."""

    def __init__(self, bundle: Bundle, dtype: Dtype | None, device: str, *, compiled: bool) -> None:
        chosen = dtype or bundle.spec.dtype
        self._device = torch.device(device)
        self._model = load_model(bundle, getattr(torch, chosen)).to(self._device)
        if bundle.spec.funnel is not None:
            apply_funnel(self._model, bundle.spec.funnel)
        self._forward: Callable[..., Any] = torch.compile(self._model) if compiled else self._model
        self._bundle = bundle
        name = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
        self.facts = {"device": name, "precision": str(chosen)}

    def run(self, ids: Ids, steps: int) -> list[float]:
        """See `TimedModel.run`."""
        return last_output(self._prepared(ids, steps)().float().cpu().numpy())

    def prepare(self, ids: Ids, steps: int) -> Callable[[], object]:
        """See `TimedModel.prepare`."""
        return self._prepared(ids, steps)

    def _prepared(self, ids: Ids, steps: int) -> Callable[[], Tensor]:
        tokens = torch.tensor(ids, device=self._device)
        if not self._bundle.spec.task.has_past:
            assert not steps
            return lambda: self._pass(tokens)
        if not steps:
            return lambda: self._read(tokens, None).logits
        length = tokens.shape[1] - steps
        cache = self._read(tokens[:, :length], None).past_key_values
        before = _Snapshot(cache)

        def generate() -> Tensor:
            for at in range(length, tokens.shape[1]):
                output: Tensor = self._read(tokens[:, at : at + 1], cache).logits
            before.restore(cache)
            return output

        return generate

    @torch.no_grad()
    def _pass(self, tokens: Tensor) -> Tensor:
        """The output of a whole text."""
        options = output_options(self._bundle, tokens.shape[1])
        out = self._forward(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **options)
        self._wait()
        output: Tensor = getattr(out, self._bundle.output.name)
        return output

    @torch.no_grad()
    def _read(self, tokens: Tensor, cache: Any) -> Any:
        """The logits of the last token of a chunk, and the cache with it."""
        out = self._forward(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._wait()
        return out

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Snapshot:
    """The tensors and counts of a cache. Its layers make new tensors in every step, so the old ones can be put back.

    Not `crop`: neither a sliding window nor a funnel's cache can go back.
    """

    def __init__(self, cache: Any) -> None:
        self._own, self._layers = dict(vars(cache)), [dict(vars(layer)) for layer in cache.layers]

    def restore(self, cache: Any) -> None:
        """Put everything back."""
        vars(cache).update(self._own)
        for layer, kept in zip(cache.layers, self._layers, strict=True):
            vars(layer).update(kept)
