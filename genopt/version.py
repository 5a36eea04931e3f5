"""The one place that says which version of genopt this is; imports nothing, so that any layer may ask."""

__version__ = "0.1.0"
OLDEST_PYTHON = (3, 11)
