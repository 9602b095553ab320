"""VaultGemma: Gemma2 with two norms a layer in place of four."""

from collections.abc import Mapping
from typing import ClassVar

from funnel_export.families.architecture import Architecture
from funnel_export.families.gemma2 import Gemma2, Gemma2Architecture
from funnel_export.spec.choices import Task


class VaultGemmaArchitecture(Gemma2Architecture):
    """A VaultGemma's `config.json`; its defaults are Gemma2's, as in `transformers.VaultGemmaConfig`."""

    title: ClassVar[str] = "VaultGemma"


class VaultGemma(Gemma2):
    """The family of `VaultGemmaForCausalLM`; Hugging Face has no classifiers of it."""

    model_type: ClassVar[str] = "vaultgemma"
    title: ClassVar[str] = "VaultGemma"
    schema: ClassVar[type[Architecture]] = VaultGemmaArchitecture
    config_name: ClassVar[str] = "VaultGemmaConfig"
    class_names: ClassVar[Mapping[Task, str]] = {
        Task.FEATURE_EXTRACTION: "VaultGemmaModel",
        Task.TEXT_GENERATION: "VaultGemmaForCausalLM",
    }
    norms: ClassVar[int] = 2
    contract_prefix: ClassVar[str] = "vaultgemma-"


VAULTGEMMA = VaultGemma()
