"""Which weights of a model are trained, and the model with them at the end."""

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from funnel_export.errors import SpecError
from funnel_export.families.registry import family_of
from funnel_export.quality.packages import load_package
from funnel_export.spec.funnel import MAPS, FunnelSpec
from funnel_export.spec.training import Objective, Part, TrainingSpec


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in training."""

    model: Any
    """Hugging Face's model, which has the weights below."""
    weights: Mapping[str, nn.Parameter]
    """The weights that are trained, in float32, by name. No other model has them."""
    adapters: Any | None
    """PEFT's model around it, for part `lora`."""

    def finish(self, dtype: torch.dtype) -> Any:
        """The model with merged adapters, in a dtype. Models that share weights with it cannot be used any more."""
        self.model.to(torch.float32)  # the sums of weights and adapters are rounded once
        model = self.model if self.adapters is None else self.adapters.merge_and_unload()
        return model.to(dtype).eval().requires_grad_(False)


def choose_weights(model: Any, spec: TrainingSpec, funnel: FunnelSpec | None) -> Trained:
    """Make the weights of a part of a model trainable, in place.

    Args:
        model: a model with its funnel, whose weights another model may share. The ones to train become copies.
        spec: which part to train, and by which loss. A classifier's head and the maps of the funnel are always part of
            it. Weights that do not affect the loss are not: dropped layers, and with `hidden` all from the recover
            layer on.
        funnel: the funnel, None for the dense model.

    Raises:
        SpecError: if this leaves nothing to train.
    """
    layers = _layers(range(model.config.num_hidden_layers), spec, funnel)
    adapters = _add_adapters(model, spec.rank, layers) if spec.part is Part.LORA and layers else None
    model.requires_grad_(False)
    names = list(_names(model, spec, layers))
    if not names:
        raise SpecError(
            "there is nothing to train",
            got=f"part {spec.part} with objective {spec.objective} and {funnel}",
            wanted="weights that the loss depends on",
            hint=f"--train {Part.ALL}",
        )
    return Trained(model, _own_weights(model, names), adapters)


def _layers(layers: range, spec: TrainingSpec, funnel: FunnelSpec | None) -> list[int]:
    """The layers whose weights are trained, if those of layers are."""
    if funnel is None:
        return list(layers)
    reached = layers[: funnel.recover_layer] if spec.objective is Objective.HIDDEN else layers
    if spec.part is Part.MIDDLE:
        reached = reached[max(funnel.pool_layer - 1, 0) : funnel.recover_layer + 1]
    dropped = layers[funnel.pool_layer : funnel.recover_layer] if funnel.drop else layers[:0]
    return [layer for layer in reached if layer not in dropped]


def _names(model: Any, spec: TrainingSpec, layers: Collection[int]) -> Iterator[str]:
    """Names of the weights to train. `layers` are those of which some may be."""
    family, task = family_of(model)
    to_the_end = spec.objective is not Objective.HIDDEN
    for name, _ in model.named_parameters(remove_duplicate=False):
        layer = _layer_of(name)
        if layer is not None:
            kept = layer in layers and (spec.part is not Part.LORA or ".lora_" in name) and spec.part is not Part.MAPS
        elif MAPS in name.split("."):
            kept = True
        elif not task.generates and name.startswith(family.task_heads):
            kept = to_the_end
        else:
            kept = spec.part is Part.ALL and (to_the_end or "embed_tokens" in name)
        if kept:
            yield name


def _layer_of(name: str) -> int | None:
    """The decoder layer that a weight is part of, if it is part of one."""
    found = re.search(r"\blayers\.(\d+)\.", name)
    return int(found[1]) if found else None


def _own_weights(model: Any, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Give a model weights of its own, in float32 and trainable; names that are tied stay tied."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    found, made = dict[str, nn.Parameter](), dict[int, nn.Parameter]()
    for name in names:
        weight = weights[name]
        if id(weight) not in made:
            made[id(weight)] = found[name] = nn.Parameter(weight.detach().to(torch.float32, copy=True))
    for name, weight in weights.items():
        if id(weight) in made:
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, made[id(weight)])
    return found


def _add_adapters(model: Any, rank: int, layers: Sequence[int]) -> Any:
    """Give the projections of some layers low-rank adapters, which change nothing at first."""
    peft = load_package("peft", "low-rank adapters", "adapt")
    names = rf".*\blayers\.({'|'.join(map(str, layers))})\.(self_attn|mlp)\.\w+_proj"
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 uses a name that transformers 5.23 renamed
        return peft.get_peft_model(model, config)
