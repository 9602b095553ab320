"""Reports of a bundle for people: what `check` and `bench` found, as Markdown, as one HTML file and as pictures."""
