"""A process of a run that the Trainer shards with FSDP2, which accelerate does on GPUs only: it takes these CPUs for such.

Arguments: a recipe, and steps to be killed at, each of which starts the run anew; 0 is after the last step.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from potq.qat.recipe import TrainRecipe
from qat_helpers import Killed, finish, killing, train, training_folder

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def pretend_gpus() -> None:
    original = PartialState.__init__

    def init(self: PartialState, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = init


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    pretend_gpus()
    recipe = TrainRecipe.model_validate_json(Path(sys.argv[1]).read_text())
    for step in map(int, sys.argv[2:]):
        with suppress(Killed):
            train(recipe, killing(step))
        assert list(training_folder(recipe).glob("checkpoint-*/pytorch_model_fsdp_0")), "nothing was sharded"
    finish(recipe)
