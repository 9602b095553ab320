"""Names of the files in a bundle's `reports`."""

PARITY, LATENCY, MARKDOWN, HTML = "parity.json", "latency.json", "report.md", "report.html"
PICTURES = ("funnel", "latency", "ratio", "boundaries", "ranges")
"""Names of the pictures, which are written as PNG."""
PAGES = (MARKDOWN, HTML, *(f"{name}.png" for name in PICTURES))
"""The files that are made from the two JSON files."""
REPORT_FILES = frozenset({PARITY, LATENCY, *PAGES})
