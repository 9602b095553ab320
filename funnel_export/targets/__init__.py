"""Targets: the runtimes that compile and run the graphs of a bundle."""
