"""Readable reports of the results of `check` and `bench`: Markdown, one HTML file, and pictures."""
