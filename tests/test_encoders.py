"""Every kind of model indexes, searches and evaluates; embeddings equal those of `transformers` called directly."""

import json
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel

from modeling_pig import VideoIndex, VideoSearcher
from modeling_pig.encoding.devices import choose_device, choose_dtype
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.encoding.text_encoder import TextEncoder
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.video_decoding_pig import decode_video

from .cli_helpers import assert_one_line_error


TEXTS = ["a red circle moves left", "a star", "two small blue squares spin and then move right"]
IMAGE_TEXT = ["clip", "siglip", "siglip2", "metaclip_2", "chinese_clip", "altclip", "tipsv2", "aimv2"]
VIDEO_TEXT = ["xclip", "videoprism", "pe_video"]
SIZE = {"height": 32, "width": 32}


def make_config(kind: str, tokenizer) -> transformers.PreTrainedConfig:
    """Return a tiny configuration."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 16,
    }
    fields = {"text_config": text, "vision_config": vision, "projection_dim": 32}
    if kind in ("siglip", "siglip2"):
        text["projection_size"] = 32
        del fields["projection_dim"]
    if kind == "siglip2":
        del vision["image_size"]
        vision["num_patches"] = 16
    if kind == "altclip":
        text |= {"project_dim": 32, "pad_token_id": 1, "max_position_embeddings": 80}
    if kind == "tipsv2":
        del fields["projection_dim"], vision["intermediate_size"]
    if kind == "xclip":
        mit = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        vision |= {"num_frames": 4, **{f"mit_{name}": value for name, value in mit.items()}}
    if kind == "videoprism":
        layers = {f"num_{name}_layers": 1 for name in ("spatial", "temporal", "auxiliary")}
        del fields["projection_dim"], vision["num_hidden_layers"], vision["patch_size"]
        vision |= {"num_frames": 4, "image_size": 36, **layers}
    if kind == "pe_video":
        specials = {"cls_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id}
        frames = {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_base_patch16_224",
            "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32},
            "num_classes": 32,
            "do_pooling": True,
        }
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        video = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, **heads, "vision_config": frames}
        fields = {"text_config": {"model_type": "modernbert", **text, **specials}, "video_config": video}
    return AutoConfig.for_model(kind, **fields)


def make_processor(kind: str, tokenizer) -> transformers.ProcessorMixin:
    """Return the processor of a tiny model."""
    crop = {"size": {"shortest_edge": 32}, "crop_size": SIZE}
    if kind in ("clip", "metaclip_2", "aimv2"):
        return transformers.CLIPProcessor(transformers.CLIPImageProcessor(**crop), tokenizer)
    if kind == "altclip":
        return transformers.AltCLIPProcessor(transformers.CLIPImageProcessor(**crop), tokenizer)
    if kind == "siglip":
        return transformers.SiglipProcessor(transformers.SiglipImageProcessor(size=SIZE), tokenizer)
    if kind == "siglip2":
        images = transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
        return transformers.Siglip2Processor(images, tokenizer)
    if kind == "chinese_clip":
        images = transformers.ChineseCLIPImageProcessor(size=SIZE, crop_size=SIZE)
        return transformers.ChineseCLIPProcessor(images, tokenizer)
    if kind == "tipsv2":
        return transformers.Tipsv2Processor(transformers.Tipsv2ImageProcessor(size=SIZE), tokenizer)
    if kind == "xclip":
        return transformers.XCLIPProcessor(transformers.VideoMAEImageProcessor(**crop), tokenizer)
    if kind == "videoprism":
        size = {"height": 36, "width": 36}
        videos = transformers.LlavaOnevisionVideoProcessor(size=size, do_normalize=False)
        return transformers.VideoPrismProcessor(videos, tokenizer)
    steps = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    videos = transformers.PeVideoVideoProcessor(size=SIZE, **steps)
    return transformers.PeVideoProcessor(videos, tokenizer)


@pytest.fixture(scope="session")
def folder_of(tokenizer, tmp_path_factory):
    """Return a function that saves a tiny random model of a kind, once, and returns its folder."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folder = tmp_path_factory.mktemp("encoders") / kind
            torch.manual_seed(0)
            AutoModel.from_config(make_config(kind, tokenizer)).save_pretrained(folder)
            make_processor(kind, tokenizer).save_pretrained(folder)
            folders[kind] = folder
        return folders[kind]

    return make


def features(output) -> torch.Tensor:
    return normalize(output.pooler_output.reshape(len(output.pooler_output), -1).float(), dim=-1)


def embed_texts(kind: str, folder: Path, model) -> torch.Tensor:
    """Embed the texts as the documentation of the model says."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    padding = "max_length" if kind in ("siglip", "siglip2", "tipsv2", "videoprism") else True
    inputs = processor.tokenizer(TEXTS, padding=padding, max_length=64, truncation=True, return_tensors="pt")
    if kind == "pe_video":  # its forward pass needs videos
        video = torch.zeros(1, 2, 3, 32, 32)
        return normalize(model(**inputs, pixel_values_videos=video).text_video_embeds, dim=-1)
    return features(model.get_text_features(**inputs))


def embed_frames(kind: str, folder: Path, model, frames: np.ndarray, texts) -> torch.Tensor:
    """Embed a clip of decoded frames, (T, height, width, 3)."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    if kind in IMAGE_TEXT:
        images = processor.image_processor(images=list(frames), return_tensors="pt")
        return normalize(features(model.get_image_features(**images)).mean(dim=0), dim=-1)
    if kind == "pe_video":
        videos = processor.video_processor([frames], do_sample_frames=False, return_tensors="pt")
        tokens = processor.tokenizer(TEXTS[:1], return_tensors="pt")
        return normalize(model(**tokens, **videos).video_embeds[0], dim=-1)
    if kind == "xclip":
        return features(model.get_video_features(**processor.image_processor([list(frames)], return_tensors="pt")))[0]
    videos = processor.video_processor([frames], do_sample_frames=False, return_tensors="pt")
    return features(model.get_video_features(**videos))[0]


@pytest.mark.parametrize("kind", [*IMAGE_TEXT, *VIDEO_TEXT])
@torch.inference_mode()
def test_embeddings_equal_those_of_transformers(kind, folder_of, shape_videos, pig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder_of(kind)
    model = AutoModel.from_pretrained(folder).eval()
    status, _, error = pig(
        "index", shape_videos[0].parent, "--model", folder, "--index", "v.lance", "--dtype", "float32"
    )
    assert status == 0, error
    index = VideoIndex("v.lance")
    num_frames = 4 if kind in ("xclip", "videoprism") else 12
    is_image_text = kind in IMAGE_TEXT
    assert index.info.kind == ("mean of frames" if is_image_text else "video")
    assert (index.info.num_frames, index.info.embedding_dim, index.info.dtype) == (num_frames, 32, "float32")
    videos = {found.entry.path: found.embedding for batch in index.batches() for found in batch.embedded()}
    assert len(videos) == 5
    expected = {}
    for path in videos:
        frames, _ = decode_video(path, num_frames)
        expected[path] = embed_frames(kind, folder, model, frames, TEXTS).numpy()
        np.testing.assert_allclose(videos[path], expected[path], atol=1e-3)  # stored in float16
    texts = embed_texts(kind, folder, model).numpy()
    encoder = load_encoder(str(folder), device="cpu", dtype="float32")
    np.testing.assert_allclose(encoder.encode_texts(TEXTS).numpy(), texts, atol=1e-5)
    frames, _ = decode_video(str(shape_videos[0]), encoder.num_frames, **encoder.decoding_options)
    clip = encoder.preprocess(frames)
    found = encoder.encode_clips([clip, clip]).embeddings.numpy()
    np.testing.assert_allclose(found, [expected[str(shape_videos[0])]] * 2, atol=1e-5)

    searcher = VideoSearcher.from_pretrained(None, "v.lance", dtype="float32")
    assert isinstance(searcher.text_encoder, TextEncoder) == (kind == "clip")  # without torch
    for text, embedding, results in zip(TEXTS, texts, searcher.search(TEXTS, k=5), strict=True):
        scores = {path: float(video @ embedding) for path, video in videos.items()}
        assert {result.path: pytest.approx(result.score, abs=1e-3) for result in results} == scores, text
    assert searcher.search_like(str(shape_videos[0]), k=9)[0].path != str(shape_videos[0])

    rows = [
        {"video_id": path, "video": path, "captions": [caption]} for path, caption in zip(videos, TEXTS, strict=False)
    ]
    record = evaluate(encoder, rows, progress=False)
    cosines = torch.from_numpy(texts @ np.stack([expected[row["video"]] for row in rows]).T)
    ranks = (cosines > cosines.diagonal()[:, None]).sum(dim=1) + 1
    assert record.text_to_video["MnR"] == pytest.approx(ranks.float().mean().item())


def test_two_precisions_share_an_index(folder_of, shape_videos, pig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("--model", folder_of("clip"), "--index", "v.lance")
    assert pig("index", shape_videos[0], *command, "--dtype", "bfloat16")[0] == 0
    assert VideoIndex("v.lance").info.dtype == "bfloat16"
    status, output, _ = pig("index", *shape_videos[:2], *command, "--dtype", "float32")
    assert status == 0 and "1 new" in output
    half = {
        found.entry.path: found.embedding for batch in VideoIndex("v.lance").batches() for found in batch.embedded()
    }
    encoder = load_encoder(str(folder_of("clip")), dtype="float32")
    frames, _ = decode_video(str(shape_videos[0]), 12, **encoder.decoding_options)
    [exact] = encoder.encode_clips([encoder.preprocess(frames)]).embeddings.numpy()
    stored = half[str(shape_videos[0])]
    assert float(stored @ exact) > 0.999 and not np.array_equal(stored, exact.astype(np.float16))


def test_models_that_cannot_encode(folder_of, shape_videos, pig, tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    clip = folder_of("clip")
    assert pig("index", shape_videos[0], "--model", clip, "--index", "v.lance")[0] == 0

    def copy(name: str, **config) -> Path:
        shutil.copytree(clip, name)
        file = Path(name, "config.json")
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return Path(name)

    config = make_config("clip", tokenizer)
    transformers.CLIPTextModelWithProjection(config.text_config).save_pretrained("texts_only")
    copy("own_code", model_type="mine", auto_map={"AutoModel": "mine.Mine"})
    copy("bert", model_type="bert")
    no_processor = copy("no_processor")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (no_processor / name).unlink()
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    before = VideoIndex("v.lance").info
    for model, message in {
        "texts_only": "its kind is 'clip_text_model'. Expected pig, clip, siglip",
        "own_code": "allow it with --trust-remote-code",
        "bert": "its kind is 'bert'",
        "no_processor": "no_processor cannot be loaded",
        "pickled": "safetensors",
        folder_of("siglip"): "was made by the model",
    }.items():
        assert_one_line_error(pig("index", shape_videos[1], "--model", model, "--index", "v.lance"), message)
    other_frames = ("--num-frames", "4")
    assert_one_line_error(
        pig("index", shape_videos[1], "--model", clip, "--index", "v.lance", *other_frames), "12 frames per video"
    )
    assert_one_line_error(
        pig("explain", shape_videos[0], "a", "--model", clip, "--output", "a.png"), "not a PIG model"
    )
    assert_one_line_error(
        pig("index", shape_videos[1], "--model", clip, "--index", "v.lance", "--device", "cuda:7"),
        "no device 'cuda:7'",
    )
    assert VideoIndex("v.lance").info == before and len(VideoIndex("v.lance")) == 1


@pytest.mark.parametrize("kind", IMAGE_TEXT + VIDEO_TEXT)
def test_long_sentences_are_cut_if_the_tokenizer_has_no_limit(kind, folder_of, tokenizer, tmp_path):
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = int(1e30)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert torch.isfinite(load_encoder(str(folder)).encode_texts(["red circle moves " * 60])).all()


def test_a_model_larger_than_the_memory_is_refused(folder_of, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=1000))
    with pytest.raises(ValueError, match=r"clip cannot be loaded: it needs 0.0 GB of memory, and 0.0 GB are free"):
        load_encoder(str(folder_of("clip")))


def test_sentence_transformers_models(folder_of, shape_videos, pig, tmp_path, monkeypatch):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional extra")
    from sentence_transformers.base.modules import Transformer

    monkeypatch.chdir(tmp_path)
    prompts = {"query": "search: ", "document": ""}
    model = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(folder_of("clip")))], prompts=prompts, device="cpu"
    )
    model.save("model")
    status, _, error = pig(
        "index", shape_videos[0].parent, "--model", "model", "--index", "v.lance", "--dtype", "float32"
    )
    assert status == 0, error
    index = VideoIndex("v.lance")
    assert index.info.kind == "sentence-transformers, mean of frames"
    clip = load_encoder(str(folder_of("clip")), dtype="float32")
    for batch in index.batches():
        for found in batch.embedded():
            frames, _ = decode_video(found.entry.path, 12, **clip.decoding_options)
            [expected] = clip.encode_clips([clip.preprocess(frames)]).embeddings.numpy()
            np.testing.assert_allclose(found.embedding, expected, atol=2e-3)
    searcher = VideoSearcher.from_pretrained(None, "v.lance", dtype="float32")
    expected = clip.encode_texts([f"search: {text}" for text in TEXTS]).numpy()
    np.testing.assert_allclose(searcher.text_encoder(TEXTS), expected, atol=1e-5)


VISION_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def qwen(tmp_path) -> Path:
    """Return a tiny model of the kind of Qwen3-VL-Embedding: the last state of Qwen3-VL, with prompts."""
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional extra")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    letters = sorted(ByteLevel.alphabet())
    tokenizer = transformers.Qwen2TokenizerFast(vocab={letter: n for n, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *VISION_TOKENS]})
    start, image, video, end = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    layers = {"hidden_size": 32, "intermediate_size": 64}
    config = transformers.Qwen3VLConfig(
        text_config={
            **layers,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            **layers,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    torch.manual_seed(0)
    transformers.Qwen3VLModel(config).save_pretrained(tmp_path / "qwen")
    size = {"shortest_edge": 32 * 32 * 2, "longest_edge": 64 * 64 * 16}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(patch_size=16),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(tmp_path / "qwen")
    model = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(tmp_path / "qwen")), Pooling(32, pooling_mode="lasttoken"), Normalize()],
        prompts={"query": "Find: ", "document": ""},
        device="cpu",
    )
    model.save(str(tmp_path / "qwen_embedding"))
    return tmp_path / "qwen_embedding"


def test_sentence_transformers_models_that_take_video(qwen, shape_videos, pig):
    """A video is one document with the times of its frames, as `transformers` called directly computes it."""
    status, _, error = pig(
        "index", shape_videos[0].parent, "--model", qwen, "--index", "v.lance", "--dtype", "float32"
    )
    assert status == 0, error
    index = VideoIndex("v.lance")
    assert index.info.kind == "sentence-transformers, video"
    model = transformers.Qwen3VLModel.from_pretrained(qwen).eval()
    processor = transformers.Qwen3VLProcessor.from_pretrained(qwen)

    def embed(*messages: tuple[str, dict], **inputs) -> np.ndarray:
        prompt = processor.apply_chat_template([{"role": role, "content": [part]} for role, part in messages])
        with torch.inference_mode():
            states = model(**processor(text=[prompt], return_tensors="pt", **inputs)).last_hidden_state
        return normalize(states[:, -1], dim=-1).numpy()

    for batch in index.batches():
        for found in batch.embedded():
            frames, metadata = decode_video(found.entry.path, 12)
            metadata.frames_indices = [int(n) - int(metadata.frames_indices[0]) for n in metadata.frames_indices]
            [expected] = embed(
                ("user", {"type": "video"}), videos=[frames], video_metadata=[metadata], do_sample_frames=False
            )
            np.testing.assert_allclose(found.embedding, expected, atol=1e-3)  # stored in float16
    searcher = VideoSearcher.from_pretrained(None, "v.lance", dtype="float32")
    system = ("system", {"type": "text", "text": "Find: "})
    expected = np.concatenate([embed(system, ("user", {"type": "text", "text": text})) for text in TEXTS])
    np.testing.assert_allclose(searcher.text_encoder(TEXTS), expected, atol=1e-5)
    status, output, error = pig("search", TEXTS[0], "--index", "v.lance", "--json")
    assert status == 0 and len(json.loads(output)["results"]) == 5, error
    rows = [{"video_id": str(n), "video": str(path), "captions": TEXTS} for n, path in enumerate(shape_videos)]
    assert evaluate(load_encoder(str(qwen)), rows, progress=False).num_queries == 15


def test_devices_and_precisions(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu and choose_dtype("float16", cpu) == torch.float16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_dtype("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_dtype("auto", cpu) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float16
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert choose_device("auto") == torch.device("mps", 0)
