"""Train on contrastive batches larger than memory: compute the gradient of a batch in the memory of one chunk.

The gradient cache of Gao et al. (2021, arXiv 2101.06983): the batch is embedded chunk by chunk without a graph, the
loss of the whole batch gives the gradient of every embedding, and each chunk is embedded again, now with a graph, to
propagate its part of that gradient to the weights. This costs one additional forward pass.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn

from modeling_pig.modeling_pig import PigOutput


# Outputs of a forward pass that `PigForRetrieval.forward` accepts in place of its inputs.
_EMBEDS = ("text_embeds", "video_embeds", "pseudo_query_embeds", "context_embeds")


def cached_backward(
    accelerator: Accelerator, model: nn.Module, batch: dict[str, torch.Tensor], chunk_size: int
) -> PigOutput:
    """Compute `accelerator.backward(model(**batch, return_loss=True).loss)` in the memory of `chunk_size` pairs.

    The gradients are equal up to rounding. With dropout, each chunk draws separate random numbers, the same in both of
    its passes. The gradients are added to `.grad`, scaled as Accelerate scales them (mixed precision, gradient
    accumulation), and averaged over the processes once, with the last chunk. Call it in place of `backward`:
    inside `accelerator.accumulate(model)` if gradients are accumulated, and before clipping them.

    Args:
        accelerator (`Accelerator`): accelerator that prepared the model.
        model (`nn.Module`): [`PigForRetrieval`] that `accelerator.prepare` returned.
        batch (`dict[str, torch.Tensor]`): arguments of the model's `forward`, tensors with one row per pair.
            Processes may hold different numbers of pairs.
        chunk_size (`int`): pairs per forward pass and process; the last chunk may be smaller.

    Returns:
        [`PigOutput`]: losses, embeddings and logits of the batch, detached.

    Raises:
        ValueError: `chunk_size` is less than 1, the tensors differ in length, the batch is empty, DeepSpeed or
            Megatron-LM is used, or weights are sharded (FSDP) and processes have different numbers of chunks.
    """
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"A gradient cache cannot be used with {accelerator.distributed_type.value}, which has a separate "
            "backward pass: train with DDP or FSDP, or without the cache."
        )
    chunks = _split(batch, chunk_size)
    _check_equal_numbers_of_chunks(model, len(chunks))
    caption_ids = batch.get("caption_ids")
    device = next(iter(batch.values())).device

    embedded, random_states = [], []
    with torch.no_grad():  # inference mode would forbid a graph from the embeddings to the loss
        for chunk in chunks:
            random_states.append(_random_state(device))
            outputs = model(**chunk)
            embedded.append({name: outputs[name] for name in _EMBEDS if outputs.get(name) is not None})
    embeds = {
        name: torch.cat([chunk[name] for chunk in embedded]).requires_grad_()  # (B, ...)
        for name in embedded[0]
    }
    del embedded

    # Weights that the loss uses directly (`logit_scale`, the interaction of `single_tower`) get their gradient here.
    with _no_sync(accelerator, model):
        losses = model(**embeds, caption_ids=caption_ids, return_loss=True)
        accelerator.backward(losses.loss)
    gradients = {name: value.grad.split(chunk_size) for name, value in embeds.items() if value.grad is not None}

    for index, chunk in enumerate(chunks):
        is_last = index == len(chunks) - 1
        with nullcontext() if is_last else _no_sync(accelerator, model):
            with _random_numbers_from(random_states[index], device):
                outputs = model(**chunk)
            # The gradient of `carrier` with respect to the embeddings is the cached gradient. The logits add nothing,
            # but bring their weights into the graph: DDP waits for a gradient of every weight.
            carrier = 0.0 * outputs.logits_per_text.sum()
            for name, parts in gradients.items():
                carrier = carrier + (outputs[name] * parts[index]).sum()
            carrier.backward()  # not `accelerator.backward`: the cached gradients are scaled already
    return PigOutput(**{name: value.detach() for name, value in losses.items()})


def _split(batch: dict[str, torch.Tensor], chunk_size: int) -> list[dict[str, torch.Tensor]]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected 1 or more pairs.")
    lengths = {name: len(value) for name, value in batch.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"The batch's tensors have {lengths} rows; expected as many rows in each, and at least one.")
    inputs = {name: value.split(chunk_size) for name, value in batch.items() if name != "caption_ids"}
    return [dict(zip(inputs, parts, strict=True)) for parts in zip(*inputs.values(), strict=True)]


def _no_sync(accelerator: Accelerator, model: nn.Module) -> AbstractContextManager:
    # `accelerator.no_sync` does nothing if torchrun started one process, but Accelerate wraps the model in DDP.
    no_sync = getattr(model, "no_sync", None)
    return accelerator.no_sync(model) if no_sync is None else no_sync()


def _check_equal_numbers_of_chunks(model: nn.Module, num_chunks: int) -> None:
    """Raise `ValueError` if processes with sharded weights would do different numbers of passes, and wait forever."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if isinstance(model, FSDPModule | FullyShardedDataParallel):
        counts = gather_object([num_chunks])
        if len(set(counts)) > 1:
            raise ValueError(
                f"The processes split their batches into {counts} chunks; sharded weights need equal numbers: "
                "give all processes batches of the same size, or drop the last, smaller batch."
            )


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


@contextmanager
def _random_numbers_from(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw the random numbers that follow `state`; restore the current state afterwards."""
    on_cpu, on_device = state
    with torch.random.fork_rng([] if on_device is None else [device]):
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.get_device_module(device).set_rng_state(on_device, device)
        yield


__all__ = ["cached_backward"]
