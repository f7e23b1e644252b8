"""The version, and its one source: packaging metadata is read from here."""

__version__ = "0.2.0"
