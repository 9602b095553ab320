"""How fast a bundle is beside the dense model."""
