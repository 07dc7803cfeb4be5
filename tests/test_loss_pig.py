"""Test losses in closed form, in blocks, and over processes, which train like one process with the total batch."""

import math

import pytest
import torch

from modeling_pig import loss_pig
from modeling_pig.loss_pig import (
    compute_logits,
    contrastive_loss,
    global_contrastive_loss,
    reconstruction_loss,
)

from .training_worker import (
    CASES,
    assert_same_training,
    share_embeds,
    tiny_batch,
    tiny_model,
    train_in_processes,
)


def test_equal_logits_give_two_log_b():
    assert contrastive_loss(torch.full((7, 7), 3.0)).item() == pytest.approx(2 * math.log(7), rel=1e-6)


def test_contrastive_loss_of_two_pairs():
    # rows: log(e^1 + e^0) - 1 and log(e^0 + e^2) - 2; columns: log(e^1 + e^0) - 1 and log(e^0 + e^2) - 2
    expected = math.log(math.e + 1) - 1 + math.log(1 + math.e**2) - 2
    assert contrastive_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("angle", "expected"), [(60, 1.0), (180, 4.0)])
def test_reconstruction_loss_by_angle(angle, expected):
    text = torch.tensor([[3.0, 0.0]])
    pseudo_query = 0.5 * torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
    assert reconstruction_loss(pseudo_query, text).item() == pytest.approx(expected, abs=1e-6)


def test_identical_captions_are_not_negatives():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    captions = [4, 9, 4, 4, 0]
    expected = 0.0
    for own in range(5):
        others = [other for other in range(5) if other == own or captions[other] != captions[own]]
        expected += math.log(sum(math.exp(logits[own, other]) for other in others)) - logits[own, own].item()
        expected += math.log(sum(math.exp(logits[other, own]) for other in others)) - logits[own, own].item()
    assert contrastive_loss(logits, torch.tensor(captions)).item() == pytest.approx(expected / 5, rel=1e-12)


def test_a_batch_of_identical_captions_has_no_loss():
    logits = torch.randn(4, 4, requires_grad=True)
    loss = contrastive_loss(logits, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_caption_ids_of_a_wrong_shape_are_rejected(make_model, batch):
    with pytest.raises(ValueError, match=r"caption_ids has shape .*\(3,\)"):
        make_model()(**batch, return_loss=True, caption_ids=torch.zeros(2, dtype=torch.long))


# blocks


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("num_context_tokens", [0, 3])
def test_loss_in_blocks_equals_contrastive_loss_in_bounded_memory(monkeypatch, rows, num_context_tokens):
    torch.manual_seed(0)
    context = (num_context_tokens,) if num_context_tokens else ()  # videos of context tokens, as in `single_tower`
    texts = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    videos = torch.randn(7, *context, 4, dtype=torch.float64, requires_grad=True)
    captions = torch.tensor([1, 2, 3, 1, 1, 5, 2])

    def similarity(some_texts, some_videos):
        sizes.append(len(some_texts) * len(some_videos))
        return some_texts @ (some_videos.sum(1) if context else some_videos).t()

    sizes = []
    whole = contrastive_loss(3 * similarity(texts, videos), captions)
    whole.backward()
    expected = [texts.grad, videos.grad]
    texts.grad = videos.grad = None
    monkeypatch.setattr(loss_pig, "MAX_BLOCK_ELEMENTS", rows * 7 * (4 if context else 1))
    sizes.clear()
    loss = global_contrastive_loss(similarity, 3, texts, videos, [7], captions)
    assert max(sizes) == rows * 7
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    loss.backward()
    torch.testing.assert_close([texts.grad, videos.grad], expected, rtol=1e-10, atol=1e-15)


def test_logits_in_blocks_equal_all_logits(monkeypatch):
    texts, videos = torch.randn(5, 4), torch.randn(3, 4)
    monkeypatch.setattr(loss_pig, "MAX_BLOCK_ELEMENTS", 2 * 3)
    rows = []

    def similarity(some_texts, some_videos):
        rows.append(len(some_texts))
        return some_texts @ some_videos.t()

    logits = compute_logits(similarity, torch.tensor(3.0), texts, videos)
    torch.testing.assert_close(logits, 3 * texts @ videos.t())
    assert rows == [2, 2, 1]


# embeddings instead of inputs


@pytest.mark.parametrize("framework", ["two_tower", "hybrid", "single_tower"])
def test_embeddings_can_replace_inputs(framework):
    model, batch = tiny_model(framework), tiny_batch(5, seed=0)
    whole = model(**batch, return_loss=True)
    names = ("text_embeds", "video_embeds", "pseudo_query_embeds", "context_embeds")
    embeds = {name: whole[name] for name in names if whole.get(name) is not None}
    again = model(**embeds, return_loss=True)
    assert torch.equal(again.loss, whole.loss) and torch.equal(again.logits_per_text, whole.logits_per_text)
    mixed = model(input_ids=batch["input_ids"], video_embeds=whole.video_embeds)
    torch.testing.assert_close(mixed.logits_per_video, whole.logits_per_video)


def test_invalid_combinations_of_inputs_and_embeddings_are_rejected():
    model, batch = tiny_model("hybrid"), tiny_batch(3, seed=0)
    embeds = model(**batch)
    with pytest.raises(ValueError, match="Give either input_ids or text_embeds"):
        model(pixel_values_videos=batch["pixel_values_videos"])
    with pytest.raises(ValueError, match="Give either pixel_values_videos or video_embeds"):
        model(**batch, video_embeds=embeds.video_embeds)
    with pytest.raises(ValueError, match="needs pseudo_query_embeds"):
        model(text_embeds=embeds.text_embeds, video_embeds=embeds.video_embeds, return_loss=True)
    with pytest.raises(ValueError, match="needs context_embeds"):
        model(
            **{name: embeds[name] for name in ("text_embeds", "video_embeds", "pseudo_query_embeds")}, return_loss=True
        )
    context = model.get_video_features(batch["pixel_values_videos"]).context_embeds
    with pytest.raises(ValueError, match=r"shape \(3, 6, 16\); a two_tower model expects \(B, D\)"):
        tiny_model("two_tower").similarity(embeds.text_embeds, context)
    with pytest.raises(ValueError, match=r"shape \(3, 16\); a single_tower model expects \(B, S, D\)"):
        tiny_model("single_tower").similarity(embeds.text_embeds, embeds.video_embeds)


def test_the_reranking_loss_is_that_of_a_single_tower():
    """The interaction of a hybrid, with the same weights in a single-tower."""
    hybrid, batch = tiny_model("hybrid"), tiny_batch(5, seed=0, with_caption_ids=True)
    single_tower = tiny_model("single_tower")
    single_tower.load_state_dict(
        {name: value for name, value in hybrid.state_dict().items() if not name.startswith("generator.")}
    )
    outputs, expected = (model(**batch, return_loss=True) for model in (hybrid, single_tower))
    torch.testing.assert_close(outputs.reranking_loss, expected.loss)
    parts = outputs.retrieval_loss + outputs.reconstruction_loss + 0.5 * outputs.reranking_loss
    torch.testing.assert_close(outputs.loss, parts)
    scores = hybrid.similarity(outputs.text_embeds, outputs.context_embeds)
    torch.testing.assert_close(hybrid.logit_scale.exp() * scores, expected.logits_per_text)
    assert tiny_model("hybrid", reranking_loss_weight=0.0)(**batch, return_loss=True).reranking_loss is None


# processes


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    return train_in_processes(2, "direct", tmp_path_factory.mktemp("run") / "results.pt")


def test_ddp_processes_train_like_one_process_with_the_total_batch(results):
    """Compare losses and gradients of three steps, the last with unequal batch sizes, and the final weights."""
    for case in CASES:
        assert_same_training(results, case, rtol=1e-6)


def test_losses_and_gradients_over_processes_equal_those_of_one_process(results):
    texts, videos = share_embeds()
    loss = contrastive_loss(texts @ videos.t())
    loss.backward()
    shares = [result["share"] for result in results]
    for share in shares:
        assert share["sizes"] == [len(texts_of_rank) for texts_of_rank in texts.tensor_split(len(results))]
        assert share["loss"] == shares[0]["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert share["mean"] == pytest.approx(texts.mean().item(), rel=1e-12)
        assert "(2, 3), (2, 4)" in share["error"] and "number of frames" in share["error"]
    # If each process computes the whole loss, an embedding receives its gradient once per process. If each process
    # computes its share, scaled by the number of processes, the sum is the same. Both need the mean over processes.
    for key in ("gradients_of_whole", "gradients"):
        for number, expected in enumerate((texts.grad, videos.grad)):
            seen = torch.cat([share[key][number] for share in shares]) / len(results)
            torch.testing.assert_close(seen, expected, atol=1e-15, rtol=1e-6)
