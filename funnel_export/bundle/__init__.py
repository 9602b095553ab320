"""What goes out: bundles and engines, and what proves that they are whole."""
