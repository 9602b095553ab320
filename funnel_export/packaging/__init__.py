"""Packages bundles for servers."""
