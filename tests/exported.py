"""Bundles for tests: tiny checkpoints exported once per session, and their graphs as forwards."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import save_tiny_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from funnel_export import Bundle, FunnelSpec, Quantization, export
from funnel_export.families.registry import get_family
from funnel_export.spec.choices import Recovery, Task
from funnel_export.targets.registry import get_target

Forward = Callable[[Tensor, Tensor | None], Tensor]

RELATIVE = 2e-5
"""Largest error in float32, over the largest output."""

_OWN = tempfile.TemporaryDirectory(prefix="funnel-export-tests-")
FOLDER = Path(_OWN.name)
"""Where a session keeps what its tests share; removed at its end."""


@dataclass(frozen=True)
class Recipe:
    """What to export: hashable, so that equal recipes share one bundle."""

    task: Task = Task.TEXT_GENERATION
    funnel: FunnelSpec | None = field(default_factory=lambda: FunnelSpec.parse("1:3:2"))
    stored: torch.dtype = torch.float32
    dtype: str = "float32"
    opset: int | None = None
    shards: str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    logits: str = "all"
    family: str = "gemma2"
    quantization: Quantization | None = None

    @property
    def cls(self) -> type[PreTrainedModel]:
        """The class of its model."""
        return get_family(self.family).model_class(self.task)

    def checkpoint(self) -> Path:
        """Folder of the tiny checkpoint."""
        maps = self.funnel if self.funnel is not None and self.funnel.recovery is Recovery.LINEAR else None
        return tiny_checkpoint(self.cls, self.stored, self.shards, self.overrides, maps)

    def bundle(self) -> Bundle:
        """The exported bundle."""
        return _exported(self)

    def model(self, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        """The checkpoint as Hugging Face loads it, without a funnel."""
        return self.cls.from_pretrained(self.checkpoint(), dtype=dtype, attn_implementation="eager").eval()


ALL_LAYERS = Recipe(funnel=FunnelSpec.parse("0:4:2"))
COMPACT = Recipe(
    funnel=FunnelSpec.parse("0:3:3", pooling="max", recovery="add", slot_positions="compact"),
    overrides=(("tie_word_embeddings", False),),
)
FEATURES = Recipe(
    task=Task.FEATURE_EXTRACTION,
    funnel=FunnelSpec.parse("2:3:2", pooling="last", recovery="replace"),
    overrides=(("attn_logit_softcapping", None),),
)
TAGS = Recipe(task=Task.TOKEN_CLASSIFICATION, funnel=FunnelSpec.parse("1:3:3", lookahead=True))
CLASSES = Recipe(task=Task.TEXT_CLASSIFICATION, funnel=FunnelSpec.parse("1:4:2", pooling="max", lookahead=True))
PAST = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse("1:3:3"))
"""Beside `Recipe()`, what tests of another bundle use: every further recipe costs a trace."""


@functools.cache
def tiny_checkpoint(
    cls: type[PreTrainedModel],
    stored: torch.dtype,
    shards: str | None = None,
    overrides: tuple[tuple[str, Any], ...] = (),
    maps: FunnelSpec | None = None,
) -> Path:
    """A tiny checkpoint, with maps for a funnel if one is given, written once per session; do not change its files."""
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=FOLDER))
    return save_tiny_checkpoint(folder, cls, stored, max_shard_size=shards, maps=maps, **dict(overrides))


_ENTRIES: dict[Path, set[Path]] = {}


@functools.cache
def _exported(recipe: Recipe) -> Bundle:
    bundle = _export(recipe, recipe.checkpoint())
    _ENTRIES[bundle.path] = set(bundle.path.iterdir())
    return bundle


def _export(recipe: Recipe, checkpoint: Path) -> Bundle:
    return export(
        checkpoint,
        Path(tempfile.mkdtemp(prefix="bundle-", dir=FOLDER)),
        funnel=recipe.funnel,
        task=recipe.task,
        dtype=recipe.dtype,
        opset=recipe.opset,
        logits=recipe.logits,
        quantization=recipe.quantization,
    )


def with_weights(recipe: Recipe, change: Callable[[dict[str, Tensor]], None]) -> Bundle:
    """A new bundle of a recipe, from a copy of its checkpoint whose weights are changed."""
    copy = Path(tempfile.mkdtemp(prefix="changed-", dir=FOLDER)) / "checkpoint"
    checkpoint = shutil.copytree(recipe.checkpoint(), copy)
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return _export(recipe, checkpoint)


def added_to_shared_bundles() -> list[Path]:
    """What was written into bundles that other tests use too, as reports and engines; removed by this call."""
    added = [path for folder, entries in _ENTRIES.items() for path in set(folder.iterdir()) - entries]
    for path in added:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return added


def float32_limit(run: Forward, rows: Sequence[Sequence[int]]) -> float:
    """The allowed difference from the oracle on these rows: a share of the largest output."""
    return RELATIVE * max(float(run(torch.tensor([row]), None).abs().max()) for row in rows)


def forward_of_bundle(bundle: Bundle, target: str = "onnxruntime") -> Forward:
    """A bundle's graph as a forward: (input_ids, attention_mask) -> output."""
    session = get_target(target).load(bundle.model)
    output = bundle.model.record.outputs[0].name

    def run(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        return torch.from_numpy(np.asarray(session.run(inputs)[output]))

    return run
