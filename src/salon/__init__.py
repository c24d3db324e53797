"""Train, compare and understand text-to-image models."""

__version__ = "0.1.0"
