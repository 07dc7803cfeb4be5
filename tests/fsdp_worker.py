"""Train with FSDP2 on CPU processes, for a test: tests/fsdp_worker.py RECIPE OUTPUT ... in each process.

Accelerate enables FSDP on GPUs only, and uses DDP on CPUs, where torch can also shard. This file sets Accelerate's
FSDP plugin, with the settings of the launch profile, when training creates its accelerator.
"""

import os
import sys
from pathlib import Path

import yaml
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from modeling_pig.training import loop
from modeling_pig.training.recipe import Recipe


PROFILE = Path(__file__).parent.parent / "configuration/accelerate/fsdp2.yaml"


def sharding_accelerator(**options) -> Accelerator:
    accelerator = Accelerator(**options)
    profile = yaml.safe_load(PROFILE.read_text())["fsdp_config"]
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=profile["fsdp_version"],
        auto_wrap_policy=profile["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=profile["fsdp_transformer_layer_cls_to_wrap"].split(","),
        state_dict_type=profile["fsdp_state_dict_type"],
    )
    Accelerator.distributed_type = property(lambda self: DistributedType.FSDP)
    AcceleratorState.distributed_type = property(lambda self: DistributedType.FSDP, lambda self, value: None)
    return accelerator


if __name__ == "__main__":
    loop.Accelerator = sharding_accelerator
    recipe, output, *overrides = sys.argv[1:]
    loop.train(Recipe.from_yaml(recipe, overrides), output, resume=True)
    # All files are written and the process group is closed. Exit at once: when the interpreter destroys a model that
    # is sharded on the CPU, torch sometimes aborts ("terminate called without an active exception").
    sys.stdout.flush()
    os._exit(0)
