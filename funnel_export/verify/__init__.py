"""Proof that a bundle computes what it should, and measures of what it costs."""
