"""``python -m potq``."""

from potq.cli import main

main()
