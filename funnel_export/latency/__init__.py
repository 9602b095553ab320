"""Latency of a bundle compared with the dense model."""
