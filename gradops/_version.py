"""The one place where the version stands: pyproject.toml reads it for the metadata, the package for `__version__`."""

__version__ = "0.1.0"
