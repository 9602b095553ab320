"""`generate`: continue a prompt with the graphs of a bundle."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.checkpoint.checkpoint import GENERATION
from funnel_export.errors import FunnelExportError, SpecError
from funnel_export.runtime.load import check_has_past, choose_target, load_graphs
from funnel_export.runtime.tokenizer import check_tokenizer, load_tokenizer
from funnel_export.spec.defaults import MAX_NEW_TOKENS
from funnel_export.system.machine import peak_bytes

if TYPE_CHECKING:
    from funnel_export.runtime.model import FunnelModelForCausalLM


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """A text that a bundle has generated."""

    text: str
    """The new text, without the prompt and special tokens."""
    tokens: list[int]
    """Token ids of the text."""
    prompt_tokens: int
    finish_reason: str
    """`stop` after an end-of-text token, `length` after the largest number of new tokens."""
    seconds_to_first_token: float
    prompt_tokens_per_second: float
    tokens_per_second: float | None
    """Rate of the tokens after the first; None for a single token."""
    cache_bytes: int
    """Memory of the caches at the end."""
    peak_memory_bytes: int
    """Largest resident memory of this process."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def generate(
    bundle: Bundle | str | os.PathLike[str],
    prompt: str,
    *,
    target: str | None = None,
    engines: Sequence[str] = (),
    chat: bool | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    show: Callable[[str], None] | None = None,
) -> Generated:
    """Continue a prompt.

    Args:
        bundle: a bundle of the task text-generation-with-past, with a tokenizer.
        prompt: the text to continue, or a user's message to a chat model.
        target: name of a target; by default the first one that runs the bundle here.
        engines: names of engines of the bundle, at most one for each graph.
        chat: whether the prompt is a user's message; by default if the tokenizer has a chat template.
        max_new_tokens: the largest number of new tokens.
        sample: whether to sample, or to take the likeliest token; by default as `generation_config.json` says.
        temperature: divisor of the logits in sampling. With this or another of these, `sample` is true by default.
        top_k: number of likeliest tokens to sample from.
        top_p: share of the probability to sample from.
        seed: seed of the sampling.
        show: called with each piece of the text as soon as it is there.

    Raises:
        BundleError: if the bundle or an engine is damaged, or has no tokenizer.
        SpecError: if the bundle has no graphs with a cache, or for invalid options and prompts.
        TargetUnavailableError: if the target does not run the bundle here.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    check_has_past(opened)
    if max_new_tokens < 1:
        raise SpecError("max_new_tokens must be at least 1", got=max_new_tokens, wanted=">= 1")
    check_tokenizer(opened.path)
    chosen = choose_target(opened, target, engines)

    import torch
    from transformers import set_seed

    from funnel_export.runtime.model import FunnelModelForCausalLM
    from funnel_export.runtime.streaming import TimedStreamer

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if sample is None and given:
        sample = True
    if sample is not None:
        given["do_sample"] = sample
    tokenizer = load_tokenizer(opened.path)
    ids = _encode(tokenizer, prompt, chat)
    model: Any = FunnelModelForCausalLM(opened, load_graphs(opened, *chosen))
    room = model.stepper.limit - ids.shape[1]
    if room < 1:
        raise SpecError(
            "the prompt is too long for the model",
            got=f"{ids.shape[1]} tokens",
            wanted=f"at most {model.stepper.limit - 1}",
        )
    if seed is not None:
        set_seed(seed)
    streamer = TimedStreamer(tokenizer, show)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            result = model.generate(
                ids,
                streamer=streamer,
                max_new_tokens=min(max_new_tokens, room),
                return_dict_in_generate=True,
                **_without_warnings(model, given),
            )
    except FunnelExportError:
        raise
    except (TypeError, ValueError) as err:  # Hugging Face refuses options by these
        raise SpecError(
            "Hugging Face's generate refuses an option",
            got=err,
            hint=f"another option, or edit the bundle's {GENERATION}",
        ) from err
    finally:
        model.close()
    new = result.sequences[0, ids.shape[1] :].tolist()
    times = [at - start for at in streamer.times]
    return Generated(
        text=tokenizer.decode(new, skip_special_tokens=True),
        tokens=new,
        prompt_tokens=ids.shape[1],
        finish_reason="stop" if new and new[-1] in model.end_tokens else "length",
        seconds_to_first_token=times[0],
        prompt_tokens_per_second=ids.shape[1] / times[0],
        tokens_per_second=(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        cache_bytes=result.past_key_values.state.nbytes,
        peak_memory_bytes=peak_bytes(),
    )


def _encode(tokenizer: Any, prompt: str, chat: bool | None) -> Any:
    """The prompt's tokens, [1, length]."""
    if chat and not tokenizer.chat_template:
        raise SpecError("the tokenizer has no chat template", got="chat", wanted="a plain prompt", hint="--raw")
    if chat or (chat is None and tokenizer.chat_template):
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    else:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
    if not ids.numel():
        raise SpecError("the prompt is empty", got=repr(prompt), wanted="at least one token", hint="--prompt TEXT")
    return ids.long()


def _without_warnings(model: "FunnelModelForCausalLM", given: dict[str, Any]) -> dict[str, Any]:
    """Options for Hugging Face's `generate` of one text, without those about which it would warn."""
    given = given | {"num_beams": 1, "num_return_sequences": 1}  # a text is shown while it is generated
    if given.get("do_sample") is False:
        given = given | {"temperature": None, "top_k": None, "top_p": None}
    if model.generation_config.pad_token_id is None:
        ends = sorted(model.end_tokens)
        given = given | {"pad_token_id": ends[0] if ends else 0}
    return given
