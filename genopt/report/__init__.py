"""report of genopt; see the package's modules."""
