"""Building the graph of a bundle: trace, assemble, refer to the weights."""

import onnx_ir as ir

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.exporter.assemble import assemble
from funnel_export.exporter.skeleton import build_skeleton
from funnel_export.exporter.trace import trace
from funnel_export.exporter.weights import check_head, find_weights, refer_to_weights
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.funnel import FunnelSpec


def build_graph(
    checkpoint: Checkpoint,
    task: Task,
    spec: FunnelSpec | None,
    dtype: Dtype,
    opset: int,
    logits: Logits = Logits.ALL,
) -> ir.Model:
    """The ONNX graph of a checkpoint with a funnel, its weights referring to the checkpoint's files.

    Raises:
        CheckpointError: if the checkpoint is not a whole Gemma2.
        SpecError: if the funnel does not fit it.
    """
    if task is Task.TEXT_GENERATION:
        check_head(checkpoint)
    skeleton = build_skeleton(checkpoint.config, task, dtype)
    if spec is not None:
        spec.validate(checkpoint.architecture.num_hidden_layers)
        spec.validate_task(task)
    find_weights(skeleton.shapes, checkpoint)  # what is missing is said before the seconds that tracing takes
    model, parameters = assemble(trace(skeleton, task, spec, opset, logits))
    refer_to_weights(model, parameters, checkpoint)
    return model
