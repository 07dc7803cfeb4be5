"""Encode texts into normalised embeddings."""

from collections.abc import Sequence

import torch

from modeling_pig import PigForRetrieval, PigProcessor, PigTextModel

from .text_encoder import check_sentences


@torch.inference_mode()
def encode_texts(
    model: PigTextModel | PigForRetrieval,
    processor: PigProcessor,
    texts: Sequence[str],
    max_tokens: int | None = None,
    batch_size: int = 256,
) -> torch.Tensor:
    """Normalised embeddings of sentences, (Q, D) float32 on the CPU.

    Args:
        texts (`Sequence[str]`): sentences.
        max_tokens (`int`, *optional*): cut longer ones here, as a benchmark's protocol may ask; by default at the
            tokenizer's own limit, with a warning.
        batch_size (`int`): sentences a forward pass.

    Raises:
        ValueError: an empty sentence.
    """
    check_sentences(texts)
    embeds = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        inputs = processor(text=batch, text_kwargs={"max_length": max_tokens}, return_tensors="pt").to(model.device)
        embeds.append(model.get_text_features(**inputs).pooler_output.float().cpu())
    return torch.nn.functional.normalize(torch.cat(embeds), dim=-1)


__all__ = ["encode_texts"]
