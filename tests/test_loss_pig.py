"""Losses in closed form, and the gather across real processes."""

import math

import pytest
import torch
import torch.multiprocessing as mp

from modeling_pig.loss_pig import contrastive_loss, gather_with_gradient, reconstruction_loss


@pytest.mark.parametrize("batch_size", [2, 7])
def test_equal_logits_give_two_log_b(batch_size):
    loss = contrastive_loss(torch.full((batch_size, batch_size), 3.0))
    assert loss.item() == pytest.approx(2 * math.log(batch_size), rel=1e-6)


def test_right_pairs_far_above_the_rest_give_zero():
    assert contrastive_loss(100 * torch.eye(5)).item() == pytest.approx(0, abs=1e-6)


def test_contrastive_loss_by_hand():
    # rows: log(e^1 + e^0) - 1 and log(e^0 + e^2) - 2; columns: log(e^1 + e^0) - 1 and log(e^0 + e^2) - 2
    expected = math.log(math.e + 1) - 1 + math.log(1 + math.e**2) - 2
    assert contrastive_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item() == pytest.approx(expected, rel=1e-6)


def test_contrastive_loss_sees_both_directions():
    logits = torch.tensor([[0.0, 5.0], [0.0, 5.0]])  # every text prefers video 1
    rows = (math.log(1 + math.e**5) - 0 + math.log(1 + math.e**5) - 5) / 2
    columns = math.log(2)
    assert contrastive_loss(logits).item() == pytest.approx(rows + columns, rel=1e-6)


@pytest.mark.parametrize(("angle", "expected"), [(0, 0.0), (60, 1.0), (90, 2.0), (180, 4.0)])
def test_reconstruction_loss_by_angle(angle, expected):
    text = torch.tensor([[3.0, 0.0]])
    pseudo_query = 0.5 * torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
    assert reconstruction_loss(pseudo_query, text).item() == pytest.approx(expected, abs=1e-6)


def test_reconstruction_loss_moves_both_sides():
    pseudo_query, text = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    reconstruction_loss(pseudo_query, text).backward()
    assert pseudo_query.grad.abs().sum() > 0 and text.grad.abs().sum() > 0


def test_gather_of_one_process_is_its_input():
    embeds = torch.randn(3, 4)
    assert gather_with_gradient(embeds) is embeds


def _loss_of_shards(rank: int, port: int, texts: torch.Tensor, videos: torch.Tensor, gradients: dict) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    text = texts[rank * 3 : rank * 3 + 3].clone().requires_grad_()
    video = videos[rank * 3 : rank * 3 + 3].clone().requires_grad_()
    loss = contrastive_loss(gather_with_gradient(text) @ gather_with_gradient(video).t())
    loss.backward()
    gradients[rank] = (loss.item(), text.grad, video.grad)
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradients_of_one(free_port):
    torch.manual_seed(0)
    texts = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    videos = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(texts @ videos.t())
    loss.backward()
    with mp.Manager() as manager:
        gradients = manager.dict()
        mp.spawn(_loss_of_shards, (free_port, texts.detach(), videos.detach(), gradients), nprocs=2)
        results = dict(gradients)
    assert results[0][0] == results[1][0] == pytest.approx(loss.item(), rel=1e-12)
    # Every process computes the whole loss, so a gradient arrives once from each: DDP's mean over processes undoes it.
    for number, expected in ((1, texts.grad), (2, videos.grad)):
        seen = torch.cat([results[0][number], results[1][number]]) / 2
        torch.testing.assert_close(seen, expected, atol=0, rtol=1e-6)
