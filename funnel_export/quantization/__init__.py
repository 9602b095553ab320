"""Quantization: a checkpoint's weights in fewer bits."""
