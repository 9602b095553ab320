"""Architectures: everything that differs between one kind of Gemma and another."""
