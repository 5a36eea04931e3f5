"""compare of genopt; see the package's modules."""
