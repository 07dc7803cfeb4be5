"""Trains with FSDP2 on CPU processes, for a test: torchrun --nproc_per_node 2 tests/fsdp_worker.py RECIPE OUTPUT ...

Accelerate takes FSDP for a matter of GPUs, and trains copies of the model on CPUs. torch can shard there as well: this
puts Accelerate's plugin back in its place, with what the launch profile says, before the training asks for it.
"""

import os
import sys
from pathlib import Path

import yaml
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from modeling_pig.training import loop  # noqa: E402
from modeling_pig.training.recipe import Recipe  # noqa: E402


def sharding_accelerator(**options) -> Accelerator:
    accelerator = Accelerator(**options)
    profile = yaml.safe_load((ROOT / "configuration/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
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
    # All is written and the process group is closed. Now and then torch aborts ("terminate called without an active
    # exception") while the interpreter takes a model that is sharded on the CPU apart: the process ends before that.
    sys.stdout.flush()
    os._exit(0)
