"""Stands for the package cuda-bindings."""
