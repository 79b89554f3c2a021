"""A training job that machines which vanish cannot break."""

__version__ = "0.1.0"  # as in pyproject.toml
