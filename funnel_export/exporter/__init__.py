"""Export of a checkpoint to an audited ONNX graph, without loading weights."""
