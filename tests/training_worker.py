"""Train tiny models in float64 for a few steps on this process's share of each batch.

Tests of training over processes run this file in two processes, and compare them with one process.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard

from modeling_pig import PigConfig, PigForRetrieval, loss_pig
from modeling_pig.loss_pig import (
    contrastive_loss,
    gather_batch_sizes,
    gather_with_gradient,
    global_contrastive_loss,
    mean_over_processes,
)
from modeling_pig.training.gradient_cache import cached_backward
from tests.warm_python import warm_python


CASES = {  # framework, with caption_ids, with blocks smaller than the batch
    "two_tower": ("two_tower", False, False),
    "hybrid": ("hybrid", False, False),
    "single_tower": ("single_tower", False, False),
    "hybrid, same captions": ("hybrid", True, False),
    "two_tower, in blocks": ("two_tower", True, True),
    "single_tower, in blocks": ("single_tower", True, True),
}
BATCH_SIZES = (8, 8, 5)  # the last is split as 3 + 2 and as 2 + 1 + 1 + 1


def tiny_model(framework: str, **settings) -> PigForRetrieval:
    """Return a model in training mode whose weights differ from their initial identities and zeros.

    A hybrid has all three losses.
    """
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PigConfig(
        text_config={**tower, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2},
        vision_config={**tower, "image_size": 8, "patch_size": 4, "num_frames": 2},
        projection_dim=16,
        num_selected_patches=3,
        framework=framework,
        logit_scale_init_value=2.0,
        **{
            "generator_num_hidden_layers": 1,
            "interaction_dropout": 0.0,
            "reranking_loss_weight": 0.5 if framework == "hybrid" else 0.0,
            **settings,
        },
    )
    torch.manual_seed(0)
    model = PigForRetrieval(config).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tiny_batch(batch_size: int, seed: int, with_caption_ids: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, 50, (batch_size, 6), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 0, 2
    videos = torch.randn(batch_size, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    batch = {"input_ids": input_ids, "pixel_values_videos": videos, "attention_mask": torch.ones_like(input_ids)}
    if with_caption_ids:
        batch["caption_ids"] = torch.tensor([7, 3, 7, 1, 7, 3, 2, 2])[:batch_size]  # equal ids on several processes
    return batch


@contextmanager
def blocks_of(elements: int):
    """Compute similarities in blocks of `elements` elements."""
    before = loss_pig.MAX_BLOCK_ELEMENTS
    loss_pig.MAX_BLOCK_ELEMENTS = elements
    try:
        yield
    finally:
        loss_pig.MAX_BLOCK_ELEMENTS = before


def train(model: nn.Module, case: str, backward, rank: int = 0, world_size: int = 1) -> dict:
    """Return losses and gradients of each step, and the final weights."""
    _, with_caption_ids, _ = CASES[case]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, gradients = [], []
    for step, batch_size in enumerate(BATCH_SIZES):
        batch = tiny_batch(batch_size, seed=step, with_caption_ids=with_caption_ids)
        outputs = backward(model, {name: value.tensor_split(world_size)[rank] for name, value in batch.items()})
        names = ("loss", "retrieval_loss", "reconstruction_loss", "reranking_loss")
        losses.append({name: outputs[name].item() for name in names if outputs.get(name) is not None})
        gradients.append({_plain(name): value.grad.clone() for name, value in model.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
    weights = {_plain(name): value.detach().clone() for name, value in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": weights}


def direct(model: nn.Module, batch: dict[str, torch.Tensor]):
    outputs = model(**batch, return_loss=True)
    outputs.loss.backward()
    return outputs


def train_in_processes(world_size: int, mode: str, output: Path) -> list[dict]:
    """Run this file in processes and return the result of each process."""
    log = output.with_suffix(".log")
    processes = warm_python().start_processes(["-m", "tests.training_worker", mode, output], log, world_size)
    assert all([process.wait() == 0 for process in processes]), log.read_text()
    results = torch.load(output, weights_only=True)
    assert len(results) == world_size
    return results


def assert_same_training(results: list[dict], case: str, rtol: float) -> None:
    """Assert that the losses, gradients and weights of each process are those of one process with the total batch."""
    expected = train(tiny_model(CASES[case][0]), case, direct)
    for result in results:
        assert result[case]["losses"] == results[0][case]["losses"]
        for losses, alone in zip(result[case]["losses"], expected["losses"], strict=True):
            assert losses == pytest.approx(alone, rel=rtol)
        for gradients, alone in zip(result[case]["gradients"], expected["gradients"], strict=True):
            assert_close_by_tensor(gradients, alone, rtol)
        assert_close_by_tensor(result[case]["weights"], expected["weights"], rtol)


def assert_close_by_tensor(tensors: dict, expected: dict, rtol: float) -> None:
    """Assert that differences are small relative to the largest element of each tensor.

    Elementwise tolerances would fail: the gradient of the keys' bias, which softmax ignores, is rounding noise.
    """
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        error, scale = (tensors[name] - value).abs().max().item(), value.abs().max().item()
        assert error <= max(rtol * scale, 1e-12), f"{name}: error {error}, largest element {scale}"


def _plain(name: str) -> str:
    return name.removeprefix("module.")


def share_embeds() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    texts, videos = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    return texts.requires_grad_(), videos.requires_grad_()


def share(rank: int, world_size: int) -> dict:
    """Return this process's share of the losses over all embeddings, which four processes split as 2 + 2 + 1 + 1."""
    text, video = (embeds.detach().tensor_split(world_size)[rank].requires_grad_() for embeds in share_embeds())
    sizes = gather_batch_sizes(text)
    contrastive_loss(gather_with_gradient(text) @ gather_with_gradient(video).t()).backward()
    whole = [text.grad, video.grad]
    text.grad = video.grad = None
    loss = global_contrastive_loss(lambda t, v: t @ v.t(), 1.0, text, video, sizes)
    loss.backward()
    result = {"sizes": sizes, "loss": loss.item(), "gradients_of_whole": whole, "gradients": [text.grad, video.grad]}
    result["mean"] = mean_over_processes(text.detach().mean(), sizes).item()
    try:
        gather_batch_sizes(torch.zeros(2, 3 + rank))
    except ValueError as error:
        return result | {"error": str(error)}
    raise AssertionError("different shapes were accepted")


def sharded(accelerator: Accelerator) -> dict:
    """Return gradients of the cache under FSDP2, and its error for processes with different numbers of chunks."""
    model = tiny_model("hybrid")
    for layer in model.vision_model.encoder.layers:
        fully_shard(layer)
    fully_shard(model, ignored_params={model.logit_scale})  # FSDP2 rejects scalars: average its gradient below
    batch = tiny_batch(8, seed=0)
    rank = accelerator.process_index
    cached_backward(accelerator, model, {name: value.tensor_split(2)[rank] for name, value in batch.items()}, 3)
    gradients = {name: value.grad for name, value in model.named_parameters()}
    gradients["logit_scale"] = accelerator.reduce(gradients["logit_scale"], "mean")
    gradients = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in gradients.items()
    }
    try:
        cached_backward(accelerator, model, {name: value.split(5)[rank] for name, value in batch.items()}, 3)
    except ValueError as error:
        return {"gradients": gradients, "error": str(error)}
    raise AssertionError("unequal numbers of chunks were accepted")


def main(mode: str, output: str) -> None:
    accelerator = Accelerator(cpu=True)
    rank, world_size = accelerator.process_index, accelerator.num_processes

    def cached(model, batch):
        return cached_backward(accelerator, model, batch, chunk_size=2)

    results = {}
    for case, (framework, _, in_blocks) in CASES.items():
        with blocks_of(16 if in_blocks else 2**22):
            model = accelerator.prepare(tiny_model(framework))
            results[case] = train(model, case, cached if mode == "cached" else direct, rank, world_size)
    if mode == "direct":
        results["share"] = share(rank, world_size)
    else:
        results["sharded"] = sharded(accelerator)
    all_results = [None] * world_size
    dist.all_gather_object(all_results, results)
    if accelerator.is_main_process:
        torch.save(all_results, output)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
