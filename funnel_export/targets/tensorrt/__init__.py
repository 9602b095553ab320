"""The targets `tensorrt` and `tensorrt-rtx`: two modules with the same Python API, one implementation."""

from funnel_export.targets.tensorrt.target import TensorRtRtxTarget, TensorRtTarget

__all__ = ["TensorRtRtxTarget", "TensorRtTarget"]
