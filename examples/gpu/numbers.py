"""Checks of the numbers: those of the authors' code, attention kernels, torch.compile."""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.measure import interleave, median_ratio
from benchmarks.train import make_batch, make_config
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_pig import PigForRetrieval
from modeling_pig.publishing.convert_checkpoint import convert_reference_checkpoint
from modeling_pig.training.reference_checkpoint import our_name

from .rows import NotRun, Row, attempt, verdict


GOLDEN = Path(__file__).parents[2] / "tests/golden"
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # as in tests/test_golden.py
LEAST_COSINE = 0.99  # of a video's embedding in half precision, to the one in float32


def golden(device: str, quick: bool) -> Iterator[Row]:
    """Compare outputs, loss and gradients with those of the authors' code on random weights, in float32 without TF32.

    Differences of outputs are absolute, and those of gradients relative to the norm of each weight's gradient.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    expected = {name: value.to(device) for name, value in load_file(GOLDEN / "golden.safetensors").items()}
    inputs = {
        "input_ids": expected["inputs/text_input_ids"],
        "attention_mask": expected["inputs/text_input_mask"],
        "pixel_values_videos": expected["inputs/video"],
    }
    with tempfile.TemporaryDirectory() as folder:
        convert_reference_checkpoint(
            GOLDEN / "model_best.pt", str(GOLDEN / "tiny_clip"), folder, num_selected_patches=5
        )
        for implementation in ("eager", "sdpa"):

            def compare(implementation: str = implementation) -> Row:
                model = PigForRetrieval.from_pretrained(folder, attn_implementation=implementation).eval().to(device)
                outputs = model(**inputs, return_loss=True)
                outputs.loss.backward()
                pairs = {
                    "final_video_embeds": outputs.video_embeds,
                    "text_embeds": outputs.text_embeds,
                    "loss": outputs.loss,
                }
                errors = [(seen - expected[f"outputs/{name}"]).abs().max().item() for name, seen in pairs.items()]
                gradients = {name: weight.grad for name, weight in model.named_parameters()}
                relative = [
                    ((gradients[our_name(name.removeprefix("grads/"))] - value).norm() / value.norm()).item()
                    for name, value in expected.items()
                    # The gradient of the keys' bias is zero in exact arithmetic.
                    if name.startswith("grads/") and not name.endswith("k_proj.bias")
                ]
                is_equal = max(errors) <= OUTPUT_TOLERANCE and max(relative) <= GRADIENT_TOLERANCE
                return {
                    "result": verdict(is_equal, "the numbers differ"),
                    "largest difference of an output": f"{max(errors):.1e}",
                    "of a gradient": f"{max(relative):.1e}",
                }

            yield attempt(f"{implementation}, float32", compare)


def attention(device: str, quick: bool) -> Iterator[Row]:
    """Compare the video embeddings of each attention kernel in half precision with eager attention in float32.

    The model is a two-tower with random weights: rounding would change which of their patches a hybrid selects.
    A kernel that this machine or this package does not have is not run. The ratio is the time of a forward pass to
    that of eager attention in the same precision.
    """
    config = make_config("tiny" if quick else "b32", 2 if quick else 12)
    config.framework = "two_tower"
    pixels = make_batch(config, 2 if quick else 16, config.vision_config.num_frames)["pixel_values_videos"].to(device)
    torch.manual_seed(0)
    model = PigForRetrieval(config).eval().to(device)

    def embed(implementation: str, dtype: torch.dtype, kernel: SDPBackend | None = None) -> torch.Tensor:
        model.set_attn_implementation(implementation)
        model.to(dtype)
        with torch.inference_mode(), sdpa_kernel(kernel) if kernel is not None else torch.no_grad():
            embeddings = model.get_video_features(pixels.to(dtype)).pooler_output.float()
        if device != "cpu":
            torch.cuda.synchronize()
        return embeddings

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    reference = embed("eager", torch.float32)
    kernels = {
        "eager": ("eager", None),
        "sdpa, as torch chooses": ("sdpa", None),
        "sdpa, flash": ("sdpa", SDPBackend.FLASH_ATTENTION),
        "sdpa, memory-efficient": ("sdpa", SDPBackend.EFFICIENT_ATTENTION),
        "sdpa, cuDNN": ("sdpa", SDPBackend.CUDNN_ATTENTION),
        "flash_attention_2": ("flash_attention_2", None),
    }
    for dtype in (torch.bfloat16, torch.float16):
        for name, kernel in kernels.items():

            def compare(name: str = name, kernel: tuple = kernel, dtype: torch.dtype = dtype) -> Row:
                if name == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
                    raise NotRun("flash_attn is not installed")
                if device == "cpu" and kernel[1] not in (None, SDPBackend.FLASH_ATTENTION):
                    raise NotRun("a kernel of GPUs")
                model.float().load_state_dict(weights)
                cosine = torch.nn.functional.cosine_similarity(embed(kernel[0], dtype, kernel[1]), reference).min()
                seconds, _ = interleave(
                    {"kernel": lambda: embed(kernel[0], dtype, kernel[1]), "eager": lambda: embed("eager", dtype)},
                    repeats=1 if quick else 10,
                )
                return {
                    "result": verdict(cosine >= LEAST_COSINE, f"a cosine is below {LEAST_COSINE}"),
                    "least cosine": cosine.item(),
                    "time / eager": median_ratio(seconds["kernel"], seconds["eager"]),
                }

            yield attempt(f"{name}, {str(dtype).removeprefix('torch.')}", compare)


def compiled(device: str, quick: bool) -> Iterator[Row]:
    """Compile a training step of each framework with `fullgraph=True`, under which a graph break is an error.

    The ratio is the time of a compiled step, forward and backward, to that of the same step without compilation.
    """
    for framework in ("hybrid", "two_tower", "single_tower"):

        def compare(framework: str = framework) -> Row:
            config = make_config("tiny" if quick else "b32", 2 if quick else 12)
            config.framework = framework
            batch = make_batch(config, 2 if quick else 16, config.vision_config.num_frames)
            batch = {name: value.to(device) for name, value in batch.items()}
            torch.manual_seed(0)
            model = PigForRetrieval(config).train().to(device)
            backend = "aot_eager" if quick else "inductor"
            fast = torch.compile(model, fullgraph=True, backend=backend)

            def step(function) -> float:
                torch.manual_seed(0)  # the same dropout
                with torch.autocast(torch.device(device).type, torch.bfloat16):
                    loss = function(**batch, return_loss=True).loss
                loss.backward()
                model.zero_grad()
                return loss.item()  # waits for the GPU

            difference = abs(step(fast) - step(model))
            seconds, _ = interleave(
                {"compiled": lambda: step(fast), "eager": lambda: step(model)}, repeats=1 if quick else 10
            )
            return {
                "backend": backend,
                "difference of the loss": f"{difference:.1e}",
                "time / eager": median_ratio(seconds["compiled"], seconds["eager"]),
            }

        yield attempt(framework, compare)
        torch.compiler.reset()
