"""From a checkpoint to an audited ONNX graph that refers to its weights."""
