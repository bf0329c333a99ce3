"""The HTTP side of configi and its engine. See docs/architecture.md."""

__version__ = "0.1.0"
