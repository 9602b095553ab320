"""TensorRT and TensorRT-RTX: one Python API, two modules, one implementation."""

from funnel_export.targets.tensorrt.target import TensorRtRtxTarget, TensorRtTarget

__all__ = ["TensorRtRtxTarget", "TensorRtTarget"]
