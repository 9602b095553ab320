"""The gates as a pytest plugin: `pytest --funnel-bundle DIR` runs parity and latency of a bundle as tests."""
