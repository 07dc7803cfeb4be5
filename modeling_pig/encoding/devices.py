"""Choose the device and the precision of a model."""

import os
from typing import Literal, TypeAlias

import torch


DTypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(name: str = "auto") -> torch.device:
    """Return a device.

    Args:
        name (`str`): device such as `cpu`, `cuda:1` or `mps`. `auto` is the accelerator that torch finds (CUDA, XPU,
            MPS, ...), otherwise the CPU; each process of a launcher gets an accelerator of its own.

    Raises:
        ValueError: there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        if accelerator is None:
            return torch.device("cpu")
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device(accelerator.type, rank % torch.accelerator.device_count())
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        found = f"{accelerator.type} and cpu" if accelerator else "cpu"
        raise ValueError(f"There is no device {name!r}; this machine has {found}: give one of these.") from error
    return device


def choose_dtype(name: DTypeName, device: torch.device) -> torch.dtype:
    """Return a precision.

    Args:
        name (`str`): `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the device computes in it (on CPUs
            with AMX or AVX512-BF16), otherwise float16 on accelerators and float32 on CPUs.
        device (`torch.device`): device that computes.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        has_bfloat16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if device.type == "mps":
        return torch.float16
    is_half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if is_half else torch.bfloat16


__all__ = ["DTypeName", "choose_device", "choose_dtype"]
