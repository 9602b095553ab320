"""Text generation with the graphs of a bundle: caches, steps, and Hugging Face's interface."""
