"""The command line. Commands import what they need when they run: ``potq --help`` answers before torch would be loaded."""

from potq.cli.app import main

__all__ = ["main"]
