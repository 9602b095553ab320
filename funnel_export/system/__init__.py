"""This machine's files and processes; nothing here knows a model."""
