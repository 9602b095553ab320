"""A model as two steps: the values of the scored tokens, and the head that makes logits of some of them at a time."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from funnel_export.families.registry import family_of
from funnel_export.training.batches import TrainingBatch


class Reader:
    """Reads the predictions of a Hugging Face model.

    Logits of a language model are large: 262,144 of them a token in Gemma 3. So the base runs on whole rows, and the
    head on a few tokens at a time.
    """

    def __init__(self, model: Any) -> None:
        family, task = family_of(model)
        self.model, self._base, self._generates = model, family.base_of(model), task.generates

    def values(self, batch: TrainingBatch) -> Float[Tensor, "scored width"]:
        """Hidden states after the final norm of a language model, or logits of a classifier, of the scored tokens."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if self._generates:
            found: Tensor = self._base(**inputs).last_hidden_state
        else:
            found = self.model(**inputs).logits
        return found[batch.rows] if found.ndim == 2 else found[batch.rows, batch.columns]

    def width(self, vocabulary: Tensor | None) -> int:
        """Logits of a token."""
        if not self._generates:
            return int(self.model.config.num_labels)
        return len(self._weight) if vocabulary is None else len(vocabulary)

    def logits(
        self, values: Float[Tensor, "scored width"], vocabulary: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "scored logits"]:
        """Logits in float32 from `values`; of a language model all, or those of the tokens in `vocabulary`."""
        if not self._generates:
            return values.float()
        weight = self._weight if vocabulary is None else self._weight[vocabulary]
        logits = F.linear(values.to(weight.dtype), weight).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.model.lm_head.weight
        return weight
