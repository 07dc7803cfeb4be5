"""Test the PIG model: attention pattern, frameworks, patch selection, initialisation, saving and loading."""

import inspect
import itertools
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, CLIPConfig, CLIPModel, PreTrainedModel

from modeling_pig import PigForRetrieval, PigTextModel, PigVideoModel
from modeling_pig.modeling_pig import PigVisionAttention


FRAMEWORKS = ["hybrid", "two_tower", "single_tower"]


def pattern_mask(num_video_tokens: int, num_frames: int, tokens_per_frame: int) -> torch.Tensor:
    """Return the attention mask, (N, N), computed token by token; `True` where attention is allowed."""
    video = -1
    frames = [video] * num_video_tokens + [frame for frame in range(num_frames) for _ in range(tokens_per_frame)]
    return torch.tensor([[row == video or column in (video, row) for column in frames] for row in frames])


@pytest.mark.parametrize(
    ("implementation", "num_globals", "num_frames", "tokens_per_frame"),
    [("sdpa", 3, 4, 17), ("eager", 3, 4, 17), ("sdpa", 0, 1, 16), ("eager", 2, 5, 1)],
)
def test_attention_in_two_parts_equals_dense_attention_with_mask(
    make_config, implementation, num_globals, num_frames, tokens_per_frame
):
    torch.manual_seed(0)
    config = make_config(vision_config={"num_global_tokens": num_globals}).vision_config
    config._attn_implementation = implementation
    attention = PigVisionAttention(config).eval()
    num_tokens = 1 + num_globals + num_frames * tokens_per_frame
    hidden_states = torch.randn(2, num_tokens, config.hidden_size)
    output, weights, class_attention = attention(
        hidden_states, num_frames, output_attentions=True, output_class_attention=True
    )

    query, key, value = (
        projection(hidden_states).view(2, num_tokens, 4, 12).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = query @ key.transpose(-1, -2) / 12**0.5
    mask = pattern_mask(1 + num_globals, num_frames, tokens_per_frame)
    dense = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = attention.out_proj((dense @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(class_attention, dense[:, :, 0], atol=1e-5, rtol=1e-5)
    if implementation == "eager":
        torch.testing.assert_close(weights, dense, atol=1e-5, rtol=1e-5)


@pytest.fixture
def clip(make_config) -> CLIPModel:
    config = make_config()
    torch.manual_seed(3)
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    for sub_config in (text, vision):
        sub_config.pop("model_type")
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
    for parameter in model.parameters():  # initial zeros and ones would hide errors
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def clip_folder(clip, tmp_path) -> str:
    clip.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def test_two_tower_with_one_frame_and_no_extra_tokens_equals_clip(clip, clip_folder):
    model = PigForRetrieval.from_clip(
        clip_folder, num_frames=1, num_global_tokens=0, use_frame_tokens=False, framework="two_tower"
    ).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = clip.get_image_features(pixel_values).pooler_output
        seen = model.get_video_features(pixel_values.unsqueeze(1)).pooler_output
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


def test_from_clip_uses_all_weights(clip, clip_folder):
    model = PigForRetrieval.from_clip(clip_folder, num_frames=4, num_selected_patches=5)
    state = model.state_dict()
    for name, value in clip.state_dict().items():
        assert torch.equal(state[name], value), name
    text = clip.text_model
    for name, value in text.encoder.layers.state_dict().items():
        assert torch.equal(state[f"generator.layers.{name}"], value)
    assert torch.equal(state["generator.final_layer_norm.weight"], text.final_layer_norm.weight)
    assert torch.equal(state["generator.text_projection.weight"], clip.text_projection.weight)
    assert torch.equal(state["generator.position_embedding.weight"], text.embeddings.position_embedding.weight)
    tokens = text.embeddings.token_embedding.weight
    assert torch.equal(state["generator.bos_embedding"], tokens[clip.config.text_config.bos_token_id])
    assert torch.equal(state["generator.eos_embedding"], tokens[clip.config.text_config.eos_token_id])
    embeddings = model.vision_model.embeddings
    assert torch.equal(embeddings.frame_embedding, clip.vision_model.embeddings.class_embedding)
    assert not embeddings.temporal_embedding.any()
    assert torch.equal(model.interaction.q_proj.weight, torch.eye(32))


def test_from_clip_corrects_the_token_ids_of_old_checkpoints(clip, tmp_path):
    clip.config.text_config.eos_token_id, clip.config.text_config.bos_token_id = 2, 0
    clip.save_pretrained(tmp_path)
    model = PigForRetrieval.from_clip(str(tmp_path), num_frames=4)
    last = clip.config.text_config.vocab_size - 1
    assert model.config.text_config.eos_token_id == last
    assert torch.equal(model.generator.eos_embedding, clip.text_model.embeddings.token_embedding.weight[last])


def test_from_clip_rejects_unknown_and_invalid_fields(clip_folder):
    with pytest.raises(ValueError, match="no field num_frame"):
        PigForRetrieval.from_clip(clip_folder, num_frame=3)
    with pytest.raises(ValueError, match="projection_dim is 16; it must be CLIP's own, 32"):
        PigForRetrieval.from_clip(clip_folder, projection_dim=16)
    with pytest.raises(ValueError, match="three_tower") as caught:
        PigForRetrieval.from_clip(clip_folder, framework="three_tower")
    assert "\n" not in str(caught.value)


def test_from_clip_rejects_an_incomplete_checkpoint(clip, tmp_path):
    state = {name: value for name, value in clip.state_dict().items() if "text_model.encoder" not in name}
    clip.save_pretrained(tmp_path, state_dict=state)
    message = "not a complete CLIP checkpoint: it lacks 32 weights, such as text_model.encoder"
    with pytest.raises(ValueError, match=message):
        PigForRetrieval.from_clip(str(tmp_path))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_forward_of_every_framework(make_model, batch, framework):
    model = make_model(framework=framework)
    outputs = model(**batch, return_loss=True, output_selection=True)
    assert outputs.logits_per_text.shape == (3, 3)
    assert torch.equal(outputs.logits_per_video, outputs.logits_per_text.t())
    assert outputs.loss.isfinite()
    assert (outputs.reconstruction_loss is not None) == (framework == "hybrid")
    assert (outputs.selected_patches is not None) == (framework == "hybrid")
    assert model(**batch).selected_patches is None
    assert not any(name.startswith("generator") for name in model.state_dict()) or framework == "hybrid"
    outputs.loss.backward()
    without_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without_gradient


def test_loss_is_the_weighted_sum_of_retrieval_and_reconstruction_loss(make_model, batch):
    outputs = make_model(reconstruction_loss_weight=0.25)(**batch, return_loss=True)
    torch.testing.assert_close(outputs.loss, outputs.retrieval_loss + 0.25 * outputs.reconstruction_loss)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_losses_of_several_captions_per_video_are_means_of_the_losses_of_each(make_model, batch, framework):
    model = make_model(framework=framework, reranking_loss_weight=float(framework == "hybrid"))
    others = {name: batch[name].roll(1, 0) for name in ("input_ids", "attention_mask")}
    several = {name: torch.stack([batch[name], others[name]], dim=1) for name in others}  # (B, 2, tokens)
    ids = torch.tensor([[1, 2], [1, 3], [4, 3]])
    outputs = model(**{**batch, **several}, caption_ids=ids, return_loss=True)
    singles = [
        model(**{**batch, **texts}, caption_ids=ids[:, index], return_loss=True)
        for index, texts in enumerate(({}, others))
    ]
    assert outputs.logits_per_text.shape == (6, 3) and outputs.text_embeds.shape == (3, 2, 32)
    torch.testing.assert_close(outputs.logits_per_text[1::2], singles[1].logits_per_text)
    for name in ("loss", "retrieval_loss", "reconstruction_loss", "reranking_loss"):
        found = [single.get(name) for single in singles]
        if found[0] is None:
            assert outputs.get(name) is None
        else:
            torch.testing.assert_close(outputs[name], sum(found) / 2)


def test_single_tower_pools_each_video_for_each_query(make_model, batch):
    model = make_model(framework="single_tower")
    with torch.inference_mode():
        outputs = model(**batch)
        context = model.get_video_features(batch["pixel_values_videos"]).context_embeds
        for row, text in enumerate(outputs.text_embeds):
            for column in range(3):
                video = model.interaction(text[None, None], context[column : column + 1])[0, 0]
                cosine = torch.nn.functional.cosine_similarity(text, video, dim=0)
                torch.testing.assert_close(outputs.logits_per_text[row, column], model.logit_scale.exp() * cosine)


def test_initial_interaction_is_attention_pooling(make_model):
    interaction = make_model().interaction
    query, context = torch.randn(2, 1, 32), torch.randn(2, 6, 32)

    def norm(states):
        return torch.nn.functional.layer_norm(states, (32,))

    weights = (norm(query) @ norm(context).transpose(1, 2) / 32**0.5).softmax(-1)
    pooled = norm(weights @ norm(context))
    torch.testing.assert_close(interaction(query, context), norm(2 * pooled), atol=1e-5, rtol=1e-5)


def test_single_tower_with_the_keys_of_xpool_pools_frame_tokens_only(make_model, batch):
    """Before training, the score is the closed form of attention pooling over the T frame tokens."""
    model = make_model(framework="single_tower", interaction_tokens="frames")
    with torch.inference_mode():
        outputs = model(**batch)
        frames = model.get_video_features(batch["pixel_values_videos"]).context_embeds[:, -4:]

    def norm(states):
        return torch.nn.functional.layer_norm(states, (32,))

    weights = torch.einsum("qd,bsd->bqs", norm(outputs.text_embeds), norm(frames) / 32**0.5).softmax(-1)
    pooled = norm(2 * norm(weights @ norm(frames)))  # (B, Q, D)
    cosines = torch.nn.functional.cosine_similarity(outputs.text_embeds, pooled, dim=-1).t()
    torch.testing.assert_close(outputs.logits_per_text, model.logit_scale.exp() * cosines, atol=1e-4, rtol=1e-4)
    with pytest.raises(StrictDataclassError, match="interaction_tokens is frames, and the video tower has none"):
        make_model(interaction_tokens="frames", vision_config={"use_frame_tokens": False})


def test_selector_takes_the_patches_with_the_highest_class_attention(make_model, batch):
    model = make_model()
    with torch.inference_mode():
        outputs = model(**batch, output_selection=True)
        attention = model.vision_model(batch["pixel_values_videos"], output_class_attention=True).class_attention
    num_patches = 16
    for clip_number in range(3):
        scores = {}
        for frame, patch in itertools.product(range(4), range(num_patches)):
            token = 4 + frame * (1 + num_patches) + 1 + patch
            scores[frame * num_patches + patch] = attention[clip_number, :, token].max().item()
        best = sorted(scores, key=scores.get, reverse=True)[:5]
        assert outputs.selected_patches[clip_number].tolist() == best


@pytest.mark.parametrize("framework", FRAMEWORKS[:2])
def test_kept_tokens_equal_those_of_the_whole_vision_model(make_model, batch, framework):
    model = make_model(framework=framework)
    calls = []
    model.selector.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        features = model.get_video_features(batch["pixel_values_videos"])
        assert len(calls) == 1
        all_tokens = model.vision_model(batch["pixel_values_videos"]).last_hidden_state
    assert all_tokens.shape == (3, 4 + 4 * 17, 48)
    context = [0, 1, 2, 3, *(4 + 17 * frame for frame in range(4))]
    torch.testing.assert_close(features.last_hidden_state[:, :8], all_tokens[:, context], atol=1e-5, rtol=1e-5)
    if framework != "hybrid":
        assert features.last_hidden_state.shape[1] == 8
        return
    frame, patch = features.selected_patches // 16, features.selected_patches % 16
    selected = all_tokens.gather(1, (4 + 17 * frame + 1 + patch).unsqueeze(-1).expand(-1, -1, 48))
    torch.testing.assert_close(features.last_hidden_state[:, 8:], selected, atol=1e-5, rtol=1e-5)


def test_padding_does_not_change_text_embeddings(make_model, batch):
    model = make_model()
    with torch.inference_mode():
        padded = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output[2]
        alone = model.get_text_features(batch["input_ids"][2:, :6]).pooler_output[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_order_of_frames_matters_only_with_a_temporal_embedding(make_model):
    model = make_model()
    pixel_values_videos = torch.randn(1, 4, 3, 32, 32)
    with torch.inference_mode():
        embeds, reversed_embeds = (
            model.get_video_features(pixels).context_embeds[:, 0]
            for pixels in (pixel_values_videos, pixel_values_videos.flip(1))
        )
        torch.testing.assert_close(embeds, reversed_embeds, atol=1e-5, rtol=1e-5)
        torch.nn.init.normal_(model.vision_model.embeddings.temporal_embedding, std=0.5)
        forward = model.get_video_features(pixel_values_videos).pooler_output
        backward = model.get_video_features(pixel_values_videos.flip(1)).pooler_output
    assert (forward - backward).abs().max() > 1e-3


def test_frames_of_another_size_need_interpolation(make_model):
    model = make_model()
    pixel_values_videos = torch.randn(1, 4, 3, 64, 48)
    with pytest.raises(ValueError, match="64 x 48 pixels, the model reads 32 x 32"):
        model.get_video_features(pixel_values_videos)
    features = model.get_video_features(pixel_values_videos, interpolate_pos_encoding=True)
    assert features.pooler_output.isfinite().all()
    tokens = model.vision_model(pixel_values_videos, interpolate_pos_encoding=True).last_hidden_state
    assert tokens.shape == (1, 4 + 4 * (1 + 8 * 6), 48)


def test_pixel_values_of_a_wrong_shape_are_rejected(make_model):
    for shape in ((4, 3, 32, 32), (1, 4, 1, 32, 32), (1, 0, 3, 32, 32)):
        with pytest.raises(ValueError, match="pixel_values_videos"):
            make_model().get_video_features(torch.zeros(shape))


def test_more_frames_than_generator_positions_are_rejected(make_model):
    model = make_model(generator_max_position_embeddings=20)
    with pytest.raises(ValueError, match="use at most 9 frames"):
        model.get_video_features(torch.zeros(1, 10, 3, 32, 32))
    model.get_video_features(torch.zeros(1, 9, 3, 32, 32))


def test_loss_needs_one_text_per_video(make_model, batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:2]
    with pytest.raises(ValueError, match="got 3 texts and 2 videos"):
        make_model()(**batch, return_loss=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"framework": "three_tower"}, "three_tower"),
        ({"selector_head_reduction": "sum"}, "sum"),
        ({"generator_use_projection": False, "projection_dim": 16}, "must equal projection_dim"),
        ({"interaction_num_attention_heads": 5}, "multiple of interaction_num_attention_heads"),
        ({"generator_max_position_embeddings": 10}, "generator_max_position_embeddings"),
        ({"num_selected_patches": -1}, "num_selected_patches"),
        ({"vision_config": {"num_frames": 0}}, "num_frames"),
    ],
)
def test_invalid_configurations_are_rejected(make_config, settings, message):
    with pytest.raises(Exception, match=message):
        make_config(**settings)


VARIANTS = [
    {},
    {"framework": "two_tower"},
    {"framework": "single_tower"},
    {"generator_learnable_ends": False},
    {"generator_use_bos": False, "generator_use_projection": False},
    {"vision_config": {"use_frame_tokens": False, "num_global_tokens": 0}},
]


def tensors_of(model) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers, including buffers that are not saved."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [*((PigForRetrieval, settings) for settings in VARIANTS), (PigVideoModel, {}), (PigTextModel, {})],
)
def test_save_and_load_keeps_all_parameters_and_buffers(make_config, tmp_path, model_class, settings):
    config = make_config(**settings)
    model = model_class(config.text_config if model_class is PigTextModel else config)
    for tensor in tensors_of(model).values():
        if tensor.is_floating_point():
            tensor.data += torch.randn_like(tensor)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected, seen = tensors_of(model), tensors_of(loaded)
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(seen[name], tensor), name


@pytest.mark.parametrize("model_class", [PigTextModel, PigVideoModel])
def test_text_and_video_model_load_from_a_retrieval_checkpoint(make_model, tmp_path, model_class, batch):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())
    with torch.inference_mode():
        if model_class is PigTextModel:
            seen = loaded(batch["input_ids"], batch["attention_mask"]).text_embeds
            expected = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        else:
            seen = loaded(batch["pixel_values_videos"]).video_embeds
            expected = model.get_video_features(batch["pixel_values_videos"]).pooler_output
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=1e-6)


LOAD_TEXT_MODEL = """
import resource, sys
import torch
from modeling_pig import PigTextModel
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
PigTextModel.from_pretrained(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_loading_a_text_model_does_not_read_video_weights_into_memory(make_config, tmp_path):
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    PigForRetrieval(make_config(vision_config=vision)).save_pretrained(tmp_path)
    file_size = (tmp_path / "model.safetensors").stat().st_size
    assert file_size > 200e6
    command = [sys.executable, "-c", LOAD_TEXT_MODEL, str(tmp_path)]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # KiB
    assert growth * 1024 < file_size / 4


def test_weights_missing_from_a_checkpoint_are_initialised(make_model, tmp_path):
    two_tower = make_model(framework="two_tower")
    two_tower.save_pretrained(tmp_path)
    loaded, info = PigForRetrieval.from_pretrained(tmp_path, framework="hybrid", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"generator", "interaction"}
    assert torch.equal(loaded.interaction.k_proj.weight, torch.eye(32))
    assert not loaded.interaction.k_proj.bias.any()
    assert torch.equal(loaded.generator.final_layer_norm.weight, torch.ones(32))
    assert 0.01 < loaded.generator.eos_embedding.std() < 0.03
    assert all(tensor.isfinite().all() for tensor in tensors_of(loaded).values())


def test_a_clip_checkpoint_loads_with_from_pretrained(clip, clip_folder, make_config):
    model, info = PigForRetrieval.from_pretrained(
        clip_folder, config=make_config(framework="two_tower"), output_loading_info=True
    )
    new = {"global_embedding", "temporal_embedding", "frame_embedding"}
    assert info["missing_keys"] == {f"vision_model.embeddings.{name}" for name in new}
    assert torch.equal(model.vision_model.embeddings.frame_embedding, clip.vision_model.embeddings.class_embedding)


def test_half_precision_keeps_logit_scale_in_float32(make_model, batch, tmp_path):
    model = AutoModel.from_config(make_model().config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    for half in (model, PigForRetrieval.from_pretrained(tmp_path, dtype="auto")):
        assert half.text_projection.weight.dtype == torch.bfloat16 == half.dtype
        assert half.logit_scale.dtype == torch.float32
    before = model.logit_scale.item()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in range(5):  # bfloat16 would round these steps to nothing
        model(**batch, return_loss=True).loss.backward()
        optimizer.step()
    assert abs(model.logit_scale.item() - before) > 1e-5


def test_from_clip_rejects_dtype():
    with pytest.raises(ValueError, match="creates a model in float32"):
        PigForRetrieval.from_clip("clip", dtype=torch.bfloat16)


def test_logit_scale_is_clamped(make_model):
    model = make_model()
    for value, expected in ((7.0, 200), (-1.0, 1)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale_()
        assert model.logit_scale.exp().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("source", ["arguments", "config", "sub_config"])
def test_output_hidden_states_and_attentions(make_config, batch, source):
    flags = {"output_hidden_states": True, "output_attentions": True}
    settings = {"arguments": {"attn_implementation": "eager"}, "config": flags, "sub_config": {"vision_config": flags}}
    model = PigForRetrieval(make_config(**settings[source]))
    arguments = flags if source == "arguments" else {}
    features = model.get_video_features(batch["pixel_values_videos"], **arguments)
    if source != "sub_config":
        assert len(model.get_text_features(batch["input_ids"], **arguments).attentions) == 2
    assert len(features.hidden_states) == 3 and len(features.attentions) == 2
    assert torch.equal(features.hidden_states[-1], features.last_hidden_state)
    num_tokens = 4 + 4 * 17
    assert [states.shape[1] for states in features.hidden_states] == [num_tokens, num_tokens, 4 + 4 + 5]
    for weights in features.attentions:
        assert weights.shape == (3, 4, num_tokens, num_tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, num_tokens))


@pytest.mark.parametrize("model_class", [PigTextModel, PigVideoModel, PigForRetrieval])
def test_attentions_need_eager_attention(make_config, model_class):
    config = make_config()
    config = config.text_config if model_class is PigTextModel else config
    config.output_attentions = True
    with pytest.raises(ValueError, match="set it to 'eager'"):
        model_class._from_config(config, attn_implementation="sdpa")


def test_a_config_can_ask_for_tuples(make_config, batch):
    config = make_config(return_dict=False)
    config.text_config.return_dict = False
    text, video = batch["input_ids"], batch["pixel_values_videos"]
    for outputs in (
        PigForRetrieval(config)(text, video),
        PigVideoModel(config)(video),
        PigTextModel(config.text_config)(text),
    ):
        assert isinstance(outputs, tuple)


def test_class_attributes_fit_the_models(make_model):
    for module in (make_model(), PigVideoModel(make_model().config), PigTextModel(make_model().config.text_config)):
        for model in (part for part in module.modules() if isinstance(part, PreTrainedModel)):
            assert model.main_input_name == next(iter(inspect.signature(model.forward).parameters))
            assert model._keep_in_fp32_modules_strict <= dict(model.named_parameters()).keys()


def test_input_embeddings_can_be_replaced(make_model):
    model = PigVideoModel(make_model().config)
    model.set_input_embeddings(torch.nn.Identity())
    assert isinstance(model.vision_model.embeddings.patch_embedding, torch.nn.Identity)


def test_attention_implementation_reaches_the_generator(make_model):
    model = make_model()
    assert model.generator.config._attn_implementation == model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.generator.config._attn_implementation == "eager"
