"""`FunnelModelForCausalLM`: a bundle as a Hugging Face model, for `generate`, streamers and pipelines."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.checkpoint.checkpoint import GENERATION, Checkpoint
from funnel_export.errors import BundleError, SpecError
from funnel_export.funnel.rows import check_padding
from funnel_export.runtime.cache import RuntimeCache
from funnel_export.runtime.load import load_stepper
from funnel_export.runtime.saving import load_cache, save_cache
from funnel_export.runtime.stepper import Stepper


class FunnelModelForCausalLM(PreTrainedModel, GenerationMixin):
    """A bundle that generates text, with Hugging Face's interface.

    `generate` and everything around it (sampling, beams, stopping criteria, logits processors, streamers, assisted
    decoding, `pipeline("text-generation")`) are Hugging Face's; the graphs run in the bundle's target. It is a
    `PreTrainedModel` without parameters, since the weights are the runtime's.
    """

    main_input_name = "input_ids"
    base_model_prefix = "model"

    def __init__(self, bundle: Bundle, stepper: Stepper) -> None:
        """Use a bundle and its loaded graphs; `from_pretrained` makes both.

        Raises:
            BundleError: if the bundle's `generation_config.json` is damaged.
        """
        config = bundle.family.read_config(Checkpoint.open(bundle.path).config)
        config.architectures = [bundle.family.class_names[bundle.spec.task.single_pass]]
        config._attn_implementation = "eager"
        super().__init__(config)
        self.bundle, self.stepper = bundle, stepper
        if (bundle.path / GENERATION).exists():
            self.generation_config = _read_generation_config(bundle.path)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens after which a text ends, as `generation_config.json` says."""
        ends = self.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else {ends} - {None})

    @property
    def device(self) -> torch.device:
        """Where inputs and logits are."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of logits."""
        return torch.float32

    @classmethod
    def from_pretrained(  # type: ignore[override]  # none of the options of PyTorch models
        cls, bundle: str | os.PathLike[str], *, target: str | None = None, engines: Sequence[str] = ()
    ) -> Self:
        """Open a bundle and load its graphs.

        Args:
            bundle: the bundle's folder.
            target: name of a target; by default the first one that runs the bundle here.
            engines: names of engines of the bundle, at most one for each graph.

        Raises:
            BundleError: if the bundle or an engine is damaged.
            SpecError: if the bundle has no graphs with a cache.
            TargetUnavailableError: if the target does not run it here.
        """
        opened = load_bundle(bundle)
        return cls(opened, load_stepper(opened, target, engines))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: RuntimeCache | None = None,
        use_cache: bool | None = None,  # noqa: ARG002 - there is always a cache
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a chunk of tokens; the chunk is added to the cache.

        Args:
            input_ids: [batch, length] tokens of this chunk.
            attention_mask: [batch, columns so far], 1 for real tokens; None if there is no padding. A row's tokens in a
                chunk are contiguous, with padding before or after them.
            past_key_values: what an earlier call returned; None for a new text.
            use_cache: for Hugging Face's interface only.
            logits_to_keep: how many of the chunk's last columns get logits; 0 for all.

        Returns:
            Logits [batch, columns, vocab_size] in float32, and the cache.

        Raises:
            SpecError: if the chunk does not fit the mask, the cache or the model.
        """
        cache = past_key_values
        if cache is None:
            cache = RuntimeCache(self.stepper.new_state(input_ids.shape[0]))
        tokens = input_ids.cpu().numpy()
        if not tokens.size:
            raise SpecError("there are no tokens", got=f"input_ids of shape {tokens.shape}", wanted="length >= 1")
        real = _chunk_mask(attention_mask, tokens, cache)
        begins, counts = real.argmax(axis=1), real.sum(axis=1)
        shifted = np.take_along_axis(tokens, (begins[:, None] + np.arange(tokens.shape[1])) % tokens.shape[1], axis=1)
        columns = np.arange(tokens.shape[1] - (logits_to_keep or tokens.shape[1]), tokens.shape[1])
        wanted = np.clip(columns[None] - begins[:, None], 0, np.maximum(counts - 1, 0)[:, None])
        logits = self.stepper.step(cache.state, shifted, counts, wanted)
        cache.real = np.concatenate([cache.real, real], axis=1)
        return CausalLMOutputWithPast(
            logits=cast(Any, torch.from_numpy(np.asarray(logits, np.float32))), past_key_values=cache
        )

    def _prepare_cache_for_generation(  # type: ignore[override]  # declared bool, and returns None
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,  # noqa: ARG002 - the signature of GenerationMixin
        batch_size: int,
        max_cache_length: int,  # noqa: ARG002
    ) -> None:
        """Make a cache for `generate`, with a row for every beam and returned sequence."""
        if model_kwargs.get("past_key_values") is not None:
            return
        rows = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1) * batch_size
        model_kwargs["past_key_values"] = RuntimeCache(self.stepper.new_state(rows))

    def save_cache(self, cache: RuntimeCache, path: str | os.PathLike[str]) -> None:
        """Write the cache of a prompt to a safetensors file, for this or a later process.

        Args:
            cache: the `past_key_values` of this model.
            path: the file. An earlier saved cache is replaced.

        Raises:
            BundleError: if the file exists and is not a saved cache, if it cannot be written, or if the disk is full.
        """
        save_cache(cache, self.bundle, Path(path))

    def load_cache(self, path: str | os.PathLike[str]) -> RuntimeCache:
        """Read a saved cache, for `past_key_values`; the texts that follow begin with the tokens that it has.

        Raises:
            BundleError: if the file is damaged, is not a saved cache, or was made with another bundle.
        """
        return load_cache(Path(path), self.bundle, self.stepper.new_state(0))

    def close(self) -> None:
        """Free the graphs."""
        self.stepper.close()


def _chunk_mask(mask: Tensor | None, tokens: NDArray[np.int64], cache: RuntimeCache) -> NDArray[np.bool_]:
    """[batch, length]: which of the chunk's columns are real tokens."""
    if mask is None:
        return np.ones(tokens.shape, np.bool_)
    columns = cache.get_seq_length() + tokens.shape[1]
    whole = mask.cpu().numpy() != 0
    if whole.shape != (tokens.shape[0], columns):
        raise SpecError(
            "the attention mask has the wrong shape",
            got=whole.shape,
            wanted=f"[batch, columns so far] = {(tokens.shape[0], columns)}",
        )
    real: NDArray[np.bool_] = whole[:, cache.get_seq_length() :]
    check_padding(torch.from_numpy(real))
    return real


def _read_generation_config(folder: Path) -> GenerationConfig:
    try:
        found = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # the file may be anything
        raise _damaged(f"{type(err).__name__}: {err}", "what Hugging Face's GenerationConfig saves") from err
    ends = found.eos_token_id if isinstance(found.eos_token_id, list) else [found.eos_token_id]
    if not all(end is None or type(end) is int for end in ends):
        raise _damaged(f"eos_token_id {found.eos_token_id!r}", "a token id, or a list of them")
    return found


def _damaged(got: str, wanted: str) -> BundleError:
    return BundleError(f"the bundle's {GENERATION} cannot be used", got=got, wanted=wanted, hint="export it again")
