"""``potq`` in a process that gets a signal, named before all other words, in the middle of a calibrated run."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from potq.cli.app import main
from potq.ptq import sequential

if __name__ == "__main__":
    name = sys.argv.pop(1)

    def stop(*_: Any) -> Any:
        os.kill(os.getpid(), getattr(signal, name))

    sequential.quantize_layer = stop
    main()
