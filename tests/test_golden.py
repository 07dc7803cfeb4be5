"""Test that outputs, losses and gradients of converted checkpoints equal those of the authors' code (tests/golden)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_pig import PigForRetrieval
from modeling_pig.publishing.convert_checkpoint import convert_reference_checkpoint
from modeling_pig.training.reference_checkpoint import our_name


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def inputs(golden) -> dict[str, torch.Tensor]:
    return {
        "input_ids": golden["inputs/text_input_ids"],
        "attention_mask": golden["inputs/text_input_mask"],
        "pixel_values_videos": golden["inputs/video"],
    }


@pytest.fixture(scope="module")
def load_reference(tmp_path_factory):
    """Return a function that loads the reference model, converted with given settings, or its vision tower only."""

    def load(two_tower: bool = False, **settings) -> PigForRetrieval:
        folder = tmp_path_factory.mktemp("converted")
        checkpoint = GOLDEN / "model_best.pt"
        if two_tower:  # a checkpoint as CLIP-ViP's code writes it
            state = torch.load(checkpoint, weights_only=True)
            checkpoint = folder / "two_tower.pt"
            clip_vip = {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.clipmodel.")}
            torch.save(clip_vip, checkpoint)
        convert_reference_checkpoint(
            checkpoint, str(GOLDEN / "tiny_clip"), folder / "model", num_selected_patches=5, **settings
        )
        return PigForRetrieval.from_pretrained(folder / "model").eval()

    return load


def assert_close(seen: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("prefix", "settings"),
    [
        ("", {}),
        ("variant_nobos/", {"generator_use_bos": False}),
        ("variant_mean/", {"selector_head_reduction": "mean"}),
    ],
)
def test_outputs_equal_the_reference(load_reference, golden, inputs, prefix, settings, implementation):
    model = load_reference(**settings)
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        outputs = model(**inputs, return_loss=True, output_selection=True)
        video, text = outputs.vision_model_output, outputs.text_model_output
        kept_tokens = model.visual_projection(model.vision_model.post_layernorm(video.last_hidden_state))
        vision = model.vision_model(inputs["pixel_values_videos"], output_class_attention=True)
        all_tokens = model.visual_projection(model.vision_model.post_layernorm(vision.last_hidden_state))
        cosines = outputs.logits_per_text / model.logit_scale.exp()
        text_tokens = model.text_projection(text.last_hidden_state)

    def reference(name: str) -> torch.Tensor:
        return golden[f"{prefix}outputs/{name}"]

    # Positions of the reference count all tokens (4 video tokens, then 1 + 16 tokens per frame), ours only patches.
    frame, patch = (reference("selector_topk_indices") - 4) // 17, (reference("selector_topk_indices") - 4) % 17 - 1
    assert torch.equal(outputs.selected_patches, frame * 16 + patch)
    assert_close(outputs.selection_scores, reference("selector_scores").topk(5).values)
    assert_close(vision.class_attention, reference("cls_attention_last"))
    assert_close(video.context_embeds[:, 0], reference("video_feats"))
    assert_close(video.context_embeds, reference("fusioner_selected_video_feats"))
    assert_close(kept_tokens, reference("generator_selected_video_feats"))
    assert_close(video.pseudo_query_embeds, reference("generated_global_text_feats"))
    assert_close(video.pooler_output, reference("final_video_feats"))
    assert_close(outputs.video_embeds, reference("final_video_embeds"))
    assert_close(text.pooler_output, reference("text_feats"))
    assert_close(outputs.text_embeds, reference("text_embeds"))
    assert_close(text_tokens, reference("text_all_feats"))
    assert_close(cosines, reference("text_embeds") @ reference("final_video_embeds").t())
    assert_close(outputs.retrieval_loss, reference("retrieval_loss"))
    assert_close(outputs.reconstruction_loss, reference("generation_loss"))
    assert_close(outputs.loss, reference("loss"))
    if not prefix:
        assert_close(all_tokens, reference("video_all_feats"))


def test_gradients_equal_the_reference(load_reference, golden, inputs):
    model = load_reference()
    model(**inputs, return_loss=True).loss.backward()
    gradients = {our_name(name.removeprefix("grads/")): g for name, g in golden.items() if name.startswith("grads/")}
    parameters = dict(model.named_parameters())
    assert parameters.keys() == gradients.keys()
    for name, expected in gradients.items():
        seen = parameters[name].grad
        if name.endswith("k_proj.bias"):  # zero in exact arithmetic
            assert seen.abs().max() < 1e-5
        else:
            assert (seen - expected).norm() <= 1e-4 * expected.norm(), name


def test_two_tower_equals_the_reference_for_two_numbers_of_frames(load_reference, golden, inputs):
    model = load_reference(two_tower=True)
    with torch.inference_mode():
        outputs = model(**inputs, return_loss=True)
        longer = model.get_video_features(golden["inputs/video_6frames"]).pooler_output
    assert_close(outputs.video_embeds, golden["twotower/outputs/video_embeds"])
    assert_close(outputs.loss, golden["twotower/outputs/retrieval_loss"])
    longer = torch.nn.functional.normalize(longer, dim=-1)
    assert_close(longer, golden["twotower/outputs/video_embeds_6frames"])
