"""Bundles and their engines: manifests, loading and verification."""
