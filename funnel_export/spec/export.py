"""What an export computes: one value, settled before anything is traced, and read from every bundle."""

from dataclasses import dataclass

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Dtype, Logits, Task, parse_choice
from funnel_export.spec.funnel import FunnelSpec

OPSETS = range(18, 23)
"""ONNX opsets that can be exported."""
DEFAULT_OPSET = 20
DEFAULT_LOGITS = Logits.ALL


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSpec:
    """What a bundle's graphs compute, whatever checkpoint they are of."""

    task: Task
    dtype: Dtype
    """What the graphs compute in, whatever the checkpoint stores."""
    funnel: FunnelSpec | None = None
    """The funnel, None for the dense model."""
    opset: int = DEFAULT_OPSET
    logits: Logits = DEFAULT_LOGITS
    """For which tokens a language model's graph gives logits."""

    def __post_init__(self) -> None:
        """Check every field, and that the fields fit each other; `SpecError` names the first that does not."""
        for name, kind in (("task", Task), ("dtype", Dtype), ("logits", Logits)):
            object.__setattr__(self, name, parse_choice(name, kind, getattr(self, name)))
        validate_opset(self.opset)
        if self.logits is Logits.LAST and self.task is not Task.TEXT_GENERATION:
            raise SpecError(
                "only text generation has logits of the last token alone",
                got=f"logits {self.logits} for {self.task}",
                wanted="logits all",
            )
        if self.funnel is not None:
            if not isinstance(self.funnel, FunnelSpec):
                raise SpecError("the funnel of an export is a FunnelSpec", got=repr(self.funnel), wanted="a FunnelSpec")
            self.funnel.validate_task(self.task)


def validate_opset(opset: int) -> None:
    """Raise `SpecError` for an opset that cannot be exported."""
    if type(opset) is not int or opset not in OPSETS:
        raise SpecError("this opset cannot be exported", got=opset, wanted=f"{OPSETS[0]} to {OPSETS[-1]}")
