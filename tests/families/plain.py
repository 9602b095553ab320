"""A second family, for tests only: a Gemma2 with another name, LayerNorm in place of RMSNorm, and no cap on scores."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model

from funnel_export.families.architecture import Architecture
from funnel_export.families.base import LayerFacts
from funnel_export.families.gemma2 import Gemma2, Gemma2Architecture
from funnel_export.spec.choices import Task


class PlainConfig(Gemma2Config):
    """Its config; a layer's scores have no cap."""

    model_type = "plain"

    def __init__(self, **values: Any) -> None:
        super().__init__(**{**values, "attn_logit_softcapping": None})


class PlainModel(Gemma2Model):
    """The model without a head."""

    config_class = PlainConfig

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if type(child).__name__ == "Gemma2RMSNorm":
                    setattr(module, name, nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps))


class PlainForCausalLM(Gemma2ForCausalLM):
    """A language model."""

    config_class = PlainConfig

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.model = PlainModel(config)
        self.post_init()


class PlainArchitecture(Gemma2Architecture):
    """What its config may say."""

    title: ClassVar[str] = "Plain"


class Plain(Gemma2):
    """The family: a file of its own is all that it takes."""

    model_type: ClassVar[str] = "plain"
    title: ClassVar[str] = "Plain"
    schema: ClassVar[type[Architecture]] = PlainArchitecture
    module: ClassVar[str] = __name__
    config_name: ClassVar[str] = "PlainConfig"
    class_names: ClassVar[dict[Task, str]] = {
        Task.FEATURE_EXTRACTION: "PlainModel",
        Task.TEXT_GENERATION: "PlainForCausalLM",
    }

    norms: ClassVar[int] = 0

    def layer_facts(self, architecture: Any, layer: int) -> LayerFacts:
        """As Gemma2's, without a cap."""
        return replace(super().layer_facts(architecture, layer), softcap=None)


PLAIN = Plain()
