"""Test that the gradient cache gives the gradients of the whole batch with the memory of one chunk."""

from collections import Counter
from functools import partial

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from modeling_pig.modeling_pig import PigOutput
from modeling_pig.training.gradient_cache import cached_backward

from .training_worker import (
    CASES,
    assert_close_by_tensor,
    assert_same_training,
    blocks_of,
    direct,
    tiny_batch,
    tiny_model,
    train_in_processes,
)


FRAMEWORKS = ("two_tower", "hybrid", "single_tower")
EMBEDS = ("text_embeds", "video_embeds", "pseudo_query_embeds", "context_embeds")


@pytest.fixture(autouse=True)
def fresh_state():
    """Reset the settings that Accelerate keeps per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def dropout_model(framework: str):
    model = tiny_model(framework, interaction_dropout=0.3)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.3  # of attention
    return model


# one process


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_gradients_equal_those_of_the_whole_batch(accelerator, framework, chunk_size):
    """Use chunks of one pair, chunks that do not divide the batch of seven, and one chunk."""
    batch = tiny_batch(7, seed=0, with_caption_ids=True)
    expected, model = tiny_model(framework), tiny_model(framework)
    whole = direct(expected, batch)
    outputs = cached_backward(accelerator, model, batch, chunk_size)
    assert_close_by_tensor(gradients(model), gradients(expected), rtol=1e-10)
    for name in ("loss", "retrieval_loss", "reconstruction_loss", "reranking_loss", "logits_per_text", *EMBEDS):
        assert (outputs.get(name) is None) == (whole.get(name) is None)
        if name in whole:
            torch.testing.assert_close(outputs[name], whole[name], rtol=1e-10, atol=1e-14)
            assert not outputs[name].requires_grad


def test_gradients_accumulate_over_calls(accelerator):
    batch, model = tiny_batch(4, seed=0), tiny_model("hybrid")
    cached_backward(accelerator, model, batch, 2)
    once = {name: value.clone() for name, value in gradients(model).items()}
    cached_backward(accelerator, model, batch, 2)
    assert_close_by_tensor(gradients(model), {name: 2 * value for name, value in once.items()}, rtol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_both_passes_over_a_chunk_have_the_same_dropout(accelerator, framework):
    batch, expected, model = tiny_batch(5, seed=0), dropout_model(framework), dropout_model(framework)
    torch.manual_seed(3)
    chunks = [expected(**{name: value[start : start + 2] for name, value in batch.items()}) for start in (0, 2, 4)]
    embeds = {name: torch.cat([chunk[name] for chunk in chunks]) for name in EMBEDS if chunks[0].get(name) is not None}
    expected(**embeds, return_loss=True).loss.backward()
    next_number = torch.rand(1)
    torch.manual_seed(3)
    cached_backward(accelerator, model, batch, 2)
    assert torch.equal(torch.rand(1), next_number)  # the random state continues as without the cache
    assert_close_by_tensor(gradients(model), gradients(expected), rtol=1e-10)
    without = tiny_model(framework)
    direct(without, batch)
    with pytest.raises(AssertionError):  # dropout was active
        assert_close_by_tensor(gradients(model), gradients(without), rtol=1e-2)


def test_gradients_are_scaled_once(accelerator):
    """Scale by the loss scale of half precision and by accumulation steps, as `Accelerator.backward` does."""
    batch, expected, model = tiny_batch(5, seed=0), tiny_model("hybrid"), tiny_model("hybrid")
    accelerator.gradient_accumulation_steps = 4
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator.backward(expected(**batch, return_loss=True).loss)
    cached_backward(accelerator, model, batch, 2)
    assert_close_by_tensor(gradients(model), gradients(expected), rtol=1e-10)
    direct(plain := tiny_model("hybrid"), batch)
    torch.testing.assert_close(model.logit_scale.grad, plain.logit_scale.grad * 1024 / 4)


def test_mixed_precision_gradients_are_close_to_those_of_the_whole_batch():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    batch = {name: value.float() if value.is_floating_point() else value for name, value in tiny_batch(6, 0).items()}
    expected, model = (accelerator.prepare(tiny_model("hybrid").float()) for _ in range(2))
    whole = expected(**batch, return_loss=True)
    assert whole.vision_model_output.last_hidden_state.isfinite().all()
    accelerator.backward(whole.loss)
    outputs = cached_backward(accelerator, model, batch, 2)
    assert isinstance(outputs, PigOutput)
    assert outputs.loss.item() == pytest.approx(whole.loss.item(), rel=0.02)
    for (name, value), other in zip(gradients(expected).items(), gradients(model).values(), strict=True):
        if not name.endswith("k_proj.bias"):
            assert torch.cosine_similarity(value.flatten(), other.flatten(), dim=0) > 0.97, name


def peak_of_saved_tensors(step, batch: dict[str, torch.Tensor]) -> int:
    """Return the peak of bytes that autograd saves during a step, without the batch; shared storages count once."""
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in batch.values())
    sizes = dict.fromkeys(storages, 0)
    peak = 0

    class Saved:
        def __init__(self, tensor):
            nonlocal peak
            self.tensor = tensor
            self.storage = tensor.untyped_storage().data_ptr()
            storages[self.storage] += 1
            sizes.setdefault(self.storage, tensor.untyped_storage().nbytes())
            peak = max(peak, sum(sizes.values()))

        def __del__(self):
            storages[self.storage] -= 1
            if not storages[self.storage]:
                del sizes[self.storage]

    with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        step()
    return peak


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_memory_is_that_of_a_chunk(accelerator, framework):
    """With the cache, memory hardly grows with the batch; without, it is proportional to the batch."""

    def peak(batch_size: int, cached: bool) -> int:
        model, batch = tiny_model(framework), tiny_batch(batch_size, seed=0)
        step = partial(cached_backward, accelerator, model, batch, 16) if cached else partial(direct, model, batch)
        return peak_of_saved_tensors(step, batch)

    with blocks_of(2**14):
        assert peak(128, cached=True) < 1.3 * peak(32, cached=True)
        assert peak(128, cached=False) > 2 * peak(32, cached=False)


@pytest.mark.parametrize(
    ("change", "chunk_size", "message"),
    [
        ({}, 0, "chunk_size is 0; expected 1 or more"),
        ({"attention_mask": torch.ones(3, 6)}, 2, "'attention_mask': 3.*as many rows in each"),
        ({name: torch.ones(0, 6) for name in tiny_batch(1, 0)}, 2, "at least one"),
    ],
)
def test_invalid_batches_are_rejected(accelerator, change, chunk_size, message):
    with pytest.raises(ValueError, match=message):
        cached_backward(accelerator, tiny_model("two_tower"), tiny_batch(4, seed=0) | change, chunk_size)


# processes


def test_ddp_synchronises_gradients_once_per_step(accelerator):
    batch, counts = tiny_batch(6, seed=0), {}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for chunk_size in (6, 2):
            model = DistributedDataParallel(tiny_model("hybrid"))
            buckets = []

            def count(_, bucket, buckets=buckets):
                buckets.append(bucket.index())
                future = torch.futures.Future()
                future.set_result(bucket.buffer())
                return future

            model.register_comm_hook(None, count)
            cached_backward(accelerator, model, batch, chunk_size)
            counts[chunk_size] = len(buckets)
    finally:
        dist.destroy_process_group()
    assert counts[6] == counts[2] > 0


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    return train_in_processes(2, "cached", tmp_path_factory.mktemp("run") / "results.pt")


def test_processes_with_cache_train_like_one_process_without(results):
    """The last batch has 3 + 2 pairs: two chunks on one process, and one chunk on the other."""
    for case in CASES:
        assert_same_training(results, case, rtol=1e-10)


def test_gradients_of_sharded_weights_equal_those_of_the_whole_batch(results):
    model = tiny_model("hybrid")
    direct(model, tiny_batch(8, seed=0))
    for result in results:
        assert_close_by_tensor(result["sharded"]["gradients"], gradients(model), rtol=1e-10)
        assert "[2, 1] chunks" in result["sharded"]["error"]
