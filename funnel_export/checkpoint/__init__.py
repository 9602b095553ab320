"""Input checkpoints: Hugging Face folders and Hub models, read without loading their weights."""
