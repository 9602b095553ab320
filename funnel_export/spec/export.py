"""`ExportSpec`: what an export computes. It is complete before tracing starts, and every bundle's manifest has it."""

from dataclasses import dataclass

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Dtype, Logits, Task, parse_choice
from funnel_export.spec.funnel import FunnelSpec, last_on_tokens, segments_of
from funnel_export.spec.quantization import QUANTIZED_OPSET, Quantization

OPSETS = range(18, 23)
"""ONNX opsets that can be exported."""
DEFAULT_OPSET = 20
DEFAULT_LOGITS = Logits.ALL


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSpec:
    """What a bundle's graphs compute, independent of the checkpoint."""

    task: Task
    dtype: Dtype
    """Compute dtype of the graphs; the checkpoint may store another one."""
    funnel: FunnelSpec | None = None
    """The funnel, None for the dense model."""
    opset: int = DEFAULT_OPSET
    logits: Logits = DEFAULT_LOGITS
    """Which tokens a language model's graph returns logits for."""
    quantization: Quantization | None = None
    """How the weights are stored, None for floating-point numbers."""

    def __post_init__(self) -> None:
        """Validate the fields, alone and in combination; raise `SpecError` for the first invalid one."""
        for name, kind in (("task", Task), ("dtype", Dtype), ("logits", Logits)):
            object.__setattr__(self, name, parse_choice(name, kind, getattr(self, name)))
        validate_opset(self.opset)
        if self.logits is Logits.LAST and self.task is not Task.TEXT_GENERATION:
            raise SpecError(
                "only text generation can return logits for the last token only",
                got=f"logits {self.logits} for {self.task}",
                wanted="logits all",
            )
        if self.funnel is not None:
            if not isinstance(self.funnel, FunnelSpec):
                raise SpecError("the funnel is not a FunnelSpec", got=repr(self.funnel), wanted="a FunnelSpec or None")
            self.funnel.validate_task(self.task)
        if self.quantization is not None and self.opset < QUANTIZED_OPSET:
            raise SpecError(
                "this opset has no weights of 4 bits and no scales for blocks",
                got=f"opset {self.opset}",
                wanted=f"opset {QUANTIZED_OPSET} or later for quantized weights",
            )

    @property
    def chooses_tokens(self) -> bool:
        """Whether logits are computed for chosen tokens only: each row's last, or those that a caller asks for."""
        return self.task.has_past or self.logits is Logits.LAST

    def trimmed_layer(self, num_layers: int) -> int | None:
        """The layer that computes keys and values of all tokens, and everything else of the chosen ones only.

        It is the last layer, unless that runs on slots. None if there are no chosen tokens.
        """
        return last_on_tokens(segments_of(self.funnel, num_layers)) if self.chooses_tokens else None


def validate_opset(opset: int) -> None:
    """Raise `SpecError` for an unsupported opset."""
    if type(opset) is not int or opset not in OPSETS:
        raise SpecError("unsupported opset", got=opset, wanted=f"{OPSETS[0]} to {OPSETS[-1]}")
