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
    """Encode texts into normalised embeddings.

    Args:
        texts (`Sequence[str]`): N queries or captions.
        max_tokens (`int`, *optional*): cut longer texts to this number of tokens, as the protocol of a benchmark may
            demand. By default they are cut to the limit of the tokenizer, with a warning.
        batch_size (`int`): texts per forward pass.

    Returns:
        `torch.Tensor` of shape `(N, embedding_dim)`: float32, normalised, on the CPU.

    Raises:
        ValueError: a text is empty or not valid Unicode.
    """
    check_sentences(texts)
    embeddings = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        inputs = processor(text=batch, text_kwargs={"max_length": max_tokens}, return_tensors="pt").to(model.device)
        embeddings.append(model.get_text_features(**inputs).pooler_output.float().cpu())
    return torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)


__all__ = ["encode_texts"]
