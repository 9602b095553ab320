"""Runtimes that compile and load the graphs of a bundle."""
