"""Proof that a bundle computes what eager PyTorch computes."""
