"""A model class for lm-evaluation-harness: checkpoints in PyTorch, and bundles in any target.

Importing this module registers the class by the name `funnel_export`:

    import lm_eval
    import funnel_export.quality.harness

    lm_eval.simple_evaluate("funnel_export", {"pretrained": "my-bundle", "target": "openvino"}, tasks=["wikitext"])
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, maybe_truncate, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from funnel_export.errors import BundleError, CheckpointError, SpecError
from funnel_export.progress import no_progress
from funnel_export.quality.rows import Row, TokenRows
from funnel_export.quality.scorers import InPyTorch, InSteps
from funnel_export.quality.scores import score
from funnel_export.quality.source import open_source
from funnel_export.runtime.model import FunnelModelForCausalLM
from funnel_export.runtime.tokenizer import load_tokenizer
from funnel_export.spec.choices import AUTO, Dtype, Task, parse_choice

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request for the cache, or None; the tokens of its context and of its continuation."""


@register_model("funnel_export")
class FunnelLM(TemplateLM):  # type: ignore[misc]  # of a package without types
    """A language model of this package; the interface is that of lm-evaluation-harness."""

    def __init__(
        self,
        pretrained: str,
        *,
        funnel: str = AUTO,
        dtype: str = Dtype.FLOAT32,
        target: str | None = None,
        engine: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,  # noqa: ARG002 - the harness passes it
    ) -> None:
        """Load a model.

        Args:
            pretrained: a checkpoint's folder or Hub id, or a bundle's folder.
            funnel: for a checkpoint, `P:R:S`, `none`, or `auto` for the funnel in its config.
            dtype: for a checkpoint, the dtype in which PyTorch computes.
            target: for a bundle, the name of a target; by default the first that runs it here.
            engine: for a bundle, the name of an engine.
            max_length: most tokens of a text; by default as many as the model takes.
            max_gen_toks: most new tokens of a text, unless the task says how many.
            batch_size: rows that run together, a number; otherwise as many as have 512 tokens.
            device: for a checkpoint, `cpu` or `cuda`.
            max_batch_size: not used.

        Raises:
            SpecError: if it is not a language model, or for options that it does not have.
        """
        super().__init__()
        computing = parse_choice("dtype", Dtype, dtype)
        self._source = open_source(pretrained, funnel=funnel, dtype=computing, target=target, engine=engine)
        if not self._source.spec.task.generates:
            raise SpecError(
                "the model is not a language model",
                got=f"task {self._source.spec.task}",
                wanted=f"{Task.TEXT_GENERATION} or {Task.TEXT_GENERATION_WITH_PAST}",
            )
        checkpoint = self._source.checkpoint
        error = CheckpointError if self._source.bundle is None else BundleError
        self.tokenizer = load_tokenizer(checkpoint.path, error)
        self.max_length = max_length or checkpoint.architecture.max_position_embeddings
        self.max_gen_toks = max_gen_toks
        self.batch_size = batch_size if isinstance(batch_size, int) else None
        self._scorer, _ = self._source.load(dense=False, dtype=computing, device=device or "cpu", progress=no_progress)

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return int(self.tokenizer.bos_token_id or self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, by default with the beginning-of-text token, unless the text has it already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.bos_token or "\0")
        found: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False).input_ids
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        """The logarithm of each continuation's probability, and whether each of its tokens is the likeliest one."""
        rows = [self._row(number, context, target) for number, (_, context, target) in enumerate(requests)]
        sizes = np.zeros(len(rows), np.int64)
        made = TokenRows(rows=[row for row in rows if len(row.columns)], document_bytes=sizes, skipped=0, cut=0)
        results = [(0.0, True)] * len(rows)
        if made.rows:
            architecture = self._source.checkpoint.architecture
            found = score(
                made, self._scorer, None, architecture=architecture, batch_size=self.batch_size, progress=no_progress
            ).model
            wrong = np.bincount(made.documents, found.predicted != made.targets, len(rows))
            nats = np.bincount(made.documents, found.nats, len(rows))
            results = [(-float(lost), not missed) for lost, missed in zip(nats, wrong, strict=True)]
        for encoded, result in zip(requests, results, strict=True):
            if encoded[0] is not None:
                self.cache_hook.add_partial("loglikelihood", encoded[0], result)
        return results

    def _row(self, number: int, context: list[int], continuation: list[int]) -> Row:
        """A row in which the continuation is scored; of texts that are too long, the end."""
        tokens = np.array((context + continuation)[-self.max_length - 1 :], np.int64)  # the last one is not read
        scored = min(len(continuation), len(tokens) - 1)
        columns = np.arange(len(tokens) - 1 - scored, len(tokens) - 1)
        return Row(number, tokens[:-1], columns, tokens[1:][columns])

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_: Any) -> list[float]:
        """The logarithm of the probability of whole texts, read in pieces that do not overlap."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        found = [loss for loss, _ in self._loglikelihood_tokens(windows)]
        sums: list[float] = np.bincount(owners, found, len(requests)).tolist() if owners else [0.0] * len(requests)
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Instance], **_: Any) -> list[str]:
        """Texts that continue the contexts, up to a stop string."""
        return [self._continued(*request.args) for request in requests]

    def _continued(self, context: str, given: dict[str, Any]) -> str:
        options = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        until = handle_stop_sequences(options.pop("until"), self.tokenizer.eos_token)
        tokens, most = maybe_truncate(
            self.tok_encode(context), options.pop("max_gen_toks"), self.max_length, shrink_gen_toks=True
        )
        if not options.get("do_sample"):
            options |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        with torch.no_grad():
            found = self._generator.generate(
                torch.tensor([tokens], device=self._generator.device),
                max_new_tokens=most,
                stopping_criteria=stop_sequences_criteria(self.tokenizer, until, len(tokens), 1),
                pad_token_id=self.eot_token_id,
                **options,
            )
        written = self.tokenizer.decode(found[0, len(tokens) :], skip_special_tokens=True)
        text: str = postprocess_generated_text(written, until, None)
        self.cache_hook.add_partial("generate_until", (context, given), text)
        return text

    @cached_property
    def _generator(self) -> Any:
        """The model with Hugging Face's `generate`.

        Raises:
            SpecError: if it is a graph without a cache.
        """
        if isinstance(self._scorer, InPyTorch):
            return self._scorer.model
        if isinstance(self._scorer, InSteps):
            return FunnelModelForCausalLM(self._scorer.bundle, self._scorer.stepper)
        raise SpecError(
            "the bundle has no graphs with a cache, so it cannot generate text",
            got=f"task {self._source.spec.task}",
            wanted=str(Task.TEXT_GENERATION_WITH_PAST),
            hint=f"funnel-export export --task {Task.TEXT_GENERATION_WITH_PAST}",
        )

    @property
    def tokenizer_name(self) -> str:
        """Name of the chat template, for the harness's cache."""
        return self._source.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as one text."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text
