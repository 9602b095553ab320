"""What comes in: a Hugging Face checkpoint, read without loading its weights."""
