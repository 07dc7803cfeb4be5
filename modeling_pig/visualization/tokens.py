"""Explain how a model sees a video: attention, selected patches, and the phrase of the query that each patch matches.

Shapes: T frames, P patches per frame in `rows` x `columns`, K selected patches, S context tokens, J phrases,
D `projection_dim`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from modeling_pig import PigForRetrieval, PigProcessor

from ..encoding.texts import encode_texts
from ..video_decoding_pig import decode_video


Matching = Literal["token", "pseudo_query"]
NO_PHRASE = -1

# Words at which a query is split. "to" and "of" are not among them ("moves to the left", "a cup of tea"), nor is "and"
# before "then": consecutive actions of one object stay one phrase.
_SEPARATING_WORDS = (
    "above across along and are around as at behind below beside between but by for from in inside into is near next "
    "on onto or over that through under was were when where which while who with"
).split()
# Fragments of these words only are dropped: "jumps up and down" becomes "jumps up".
_SMALL_WORDS = set(
    "a an away back down he her his it its of off out she some the their then there these they this those to "
    "up".split()
)
_SEPARATOR = re.compile(
    rf"(?<![\w'-])(?:{'|'.join(_SEPARATING_WORDS)})(?![\w'-])(?!\s+then\b)|[,;:.!?](?=\s|$)|[()\"“”–—]", re.IGNORECASE
)


class Phrase(NamedTuple):
    """Phrase of a query: its text, and the character span `(start, end)` of each of its occurrences."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ExpectedCaption(NamedTuple):
    """A caption and its cosine with a video's pseudo-query."""

    caption: str
    cosine: float


@dataclass
class VideoExplanation:
    """Explanation of a video, from [`explain_video`]. Optional fields are `None` unless the model is a `hybrid`.

    Attributes:
        query (`str`): query, with single spaces.
        score (`float`): cosine of query and video, by which retrieval ranks.
        frames (`np.ndarray` of shape `(T, height, width, 3)`): uint8 frames of the clip, before resizing to a square.
        frame_numbers (`list[int]`): numbers of the frames in the video, from 0.
        attention (`np.ndarray` of shape `(T, rows, columns)`):
            Attention of the class token to each patch in the last layer, reduced over the heads as in the selector,
            in multiples of uniform attention: 1 is the attention of a token that attends equally to all tokens.
        phrases (`list[Phrase]`): J phrases of the query, from [`split_phrases`].
        selected_patches (`np.ndarray` of shape `(K,)`, *optional*): best first; patch `p` of frame `t` is `t * P + p`.
        matches (`np.ndarray` of shape `(K,)`, *optional*):
            Index of the phrase that each selected patch matches; `NO_PHRASE` if no phrase matches well.
        pseudo_query (`np.ndarray` of shape `(D,)`, *optional*): pseudo-query of the video, normalised.
        query_cosine (`float`, *optional*): cosine of query and pseudo-query.
        expected (`list[ExpectedCaption]`, *optional*): captions nearest to the pseudo-query, nearest first.
        num_captions (`int`): number of distinct captions from which `expected` was chosen.
        frame_times (`list[float]`, *optional*): times of the frames at the average frame rate, in seconds after the
            start of the video; `None` for a folder of frames.
    """

    query: str
    score: float
    frames: np.ndarray
    frame_numbers: list[int]
    attention: np.ndarray
    phrases: list[Phrase]
    selected_patches: np.ndarray | None = None
    matches: np.ndarray | None = None
    pseudo_query: np.ndarray | None = None
    query_cosine: float | None = None
    expected: list[ExpectedCaption] | None = None
    num_captions: int = 0
    frame_times: list[float] | None = None


def split_phrases(query: str) -> list[Phrase]:
    """Split a query into phrases at punctuation, conjunctions, prepositions and forms of "to be".

    The separators, and fragments without a content word, are dropped. The rule is made for English; if it finds no
    phrase, the whole query is one phrase.

    Example:

    ```python
    >>> [phrase.text for phrase in split_phrases("A red circle spins and then grows, a dog is running on the beach")]
    ['A red circle spins and then grows', 'a dog', 'running', 'the beach']
    ```"""
    spans: dict[str, list[tuple[int, int]]] = {}
    start = 0
    for end, following in [*(match.span() for match in _SEPARATOR.finditer(query)), (len(query), len(query))]:
        fragment = query[start:end]
        if set(re.findall(r"\w+", fragment.lower())) - _SMALL_WORDS:
            first = start + len(fragment) - len(fragment.lstrip())
            spans.setdefault(fragment.strip().lower(), []).append((first, first + len(fragment.strip())))
        start = following
    phrases = [Phrase(query[slice(*of_phrase[0])], tuple(of_phrase)) for of_phrase in spans.values()]
    return phrases or [Phrase(query, ((0, len(query)),))]


@torch.inference_mode()
def explain_video(
    model: PigForRetrieval,
    processor: PigProcessor,
    video: str | Path,
    query: str,
    captions: Sequence[str] = (),
    matching: Matching = "pseudo_query",
    num_frames: int | None = None,
    num_expected: int = 5,
    start: float | None = None,
    end: float | None = None,
) -> VideoExplanation:
    """Explain how a model sees a video: attention of the class token, selected patches, and the phrase of each patch.

    For `two_tower` and `single_tower` models, which have no selector and no pseudo-query, only the attention is
    returned.

    Args:
        model (`PigForRetrieval`): model in evaluation mode.
        processor (`PigProcessor`): processor of the model.
        video (`str` or `Path`): video file, or folder of numbered JPEG frames.
        query (`str`): query.
        captions (`Sequence[str]`, *optional*): captions among which to find the nearest to the pseudo-query; `hybrid`
            only.
        matching (`str`, *optional*, defaults to `"pseudo_query"`): measure of the match of a patch and a phrase.
            `"pseudo_query"`: how far the patch moves the pseudo-query towards the phrase, which is the only effect of
            a patch on the video's embedding: the cosine of the phrase and the pseudo-query generated with this patch,
            minus the cosine without it, with all other selected patches replaced by the clip's average patch.
            `"token"`: cosine of the patch token and the phrase's embedding. No loss trains this cosine:
            `examples/check_selection.py` measures whether it is right.
            With both measures a patch has no phrase if it is no nearer to the phrase than the average patch of the
            clip, or if the phrase gets less than half of a softmax over all phrases at the model's temperature.
        num_frames (`int`, *optional*): frames of the clip, T; by default the processor's.
        num_expected (`int`, *optional*, defaults to 5): number of captions to return.
        start, end (`float`, *optional*): segment of the video, in seconds after the start of the file, as for
            [`decode_video`]; by default the whole video.

    Returns:
        [`VideoExplanation`].

    Raises:
        ValueError: the query is empty, captions are given for a model without a pseudo-query, or `num_frames` is
            larger than the model's.
        VideoDecodingError: the video cannot be decoded.
    """
    query = " ".join(query.split())
    if not query:
        raise ValueError("The query is empty: say what to look for.")
    framework, vision_config = model.config.framework, model.config.vision_config
    if captions and framework != "hybrid":
        raise ValueError(f"This is a {framework} model, which generates no pseudo-query: leave the captions out.")

    of_videos = processor.video_processor
    frames, metadata = decode_video(
        video, num_frames or of_videos.num_frames, start=start, end=end, sampling=of_videos.frame_sampling
    )
    inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
    pixel_values_videos = inputs["pixel_values_videos"].to(model.device, model.dtype)  # (1, T, 3, height, width)
    features = model.get_video_features(pixel_values_videos)
    outputs = model.vision_model(pixel_values_videos, output_class_attention=True)  # with all tokens
    rows, columns = (side // vision_config.patch_size for side in pixel_values_videos.shape[3:])

    def patches_of(tokens: torch.Tensor) -> torch.Tensor:
        """Return the patches, (T, P, ...), of all tokens, (N, ...): class, global and frame tokens, patches."""
        in_frames = tokens[1 + vision_config.num_global_tokens :].unflatten(0, (len(frames), -1))
        return in_frames[:, -rows * columns :]  # the frame token comes first

    reduce = torch.amax if model.config.selector_head_reduction == "max" else torch.mean
    attention = reduce(outputs.class_attention[0], dim=0)  # (N,)
    attention = patches_of(attention * len(attention)).unflatten(1, (rows, columns))  # (T, rows, columns)

    phrases = split_phrases(query)
    text_embeds = encode_texts(model, processor, [query, *(phrase.text for phrase in phrases)])  # (1 + J, D)
    text_embeds = text_embeds.to(model.device)
    video_embeds = features.context_embeds if framework == "single_tower" else features.pooler_output
    explanation = VideoExplanation(
        query=query,
        score=model.similarity(text_embeds[:1], video_embeds.float()).item(),
        frames=frames,
        frame_numbers=[int(number) for number in metadata.frames_indices or ()],
        attention=attention.float().cpu().numpy(),
        phrases=phrases,
        frame_times=[number / metadata.fps for number in metadata.frames_indices or ()] if metadata.fps else None,
    )
    if framework != "hybrid":
        return explanation

    patches = patches_of(_to_joint_space(model, outputs.last_hidden_state)[0]).flatten(0, 1)  # (T * P, D)
    selected = features.selected_patches[0]  # (K,)
    if matching == "token":
        cosines = normalize(patches.float(), dim=-1) @ text_embeds[1:].t()  # (T * P, J)
        scores, gains = cosines[selected], cosines[selected] - cosines.mean(dim=0)  # (K, J) each
    else:
        scores = gains = _gains_of_pseudo_query(model, features.context_embeds[0], patches, selected, text_embeds[1:])
    explanation.selected_patches = selected.cpu().numpy()
    explanation.matches = _match(scores, gains, model.logit_scale.exp().item()).cpu().numpy()

    pseudo_query = normalize(features.pseudo_query_embeds.float(), dim=-1)[0]  # (D,)
    explanation.pseudo_query = pseudo_query.cpu().numpy()
    explanation.query_cosine = (text_embeds[0] @ pseudo_query).item()
    if captions:
        cosines = encode_texts(model, processor, captions).to(model.device) @ pseudo_query  # (captions,)
        best = cosines.topk(min(num_expected, len(captions)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        explanation.expected = [ExpectedCaption(captions[number], cosine) for number, cosine in found]
        explanation.num_captions = len(captions)
    return explanation


def _to_joint_space(model: PigForRetrieval, hidden_states: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model.post_layernorm(hidden_states))


def _gains_of_pseudo_query(
    model: PigForRetrieval, context: torch.Tensor, patches: torch.Tensor, selected: torch.Tensor, phrases: torch.Tensor
) -> torch.Tensor:
    """Return how far each selected patch alone moves the pseudo-query towards each phrase, in cosine: (K, J).

    The average patch of the clip replaces the other selected patches, because the generator expects K patches.
    """
    num_selected = len(selected)
    alone = patches.mean(dim=0).repeat(
        1 + num_selected, num_selected, 1
    )  # (1 + K, K, D): row 0 without any patch, row 1 + k with patch k
    positions = torch.arange(num_selected, device=selected.device)
    alone[1 + positions, positions] = patches[selected]
    tokens = torch.cat([context.expand(1 + num_selected, -1, -1), alone], dim=1)  # (1 + K, S + K, D)
    cosines = normalize(model.generator(tokens).float(), dim=-1) @ phrases.t()  # (1 + K, J)
    return cosines[1:] - cosines[0]


def _match(scores: torch.Tensor, gains: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the index of each patch's phrase, or `NO_PHRASE`: (K,).

    A patch matches the phrase of the highest of its scores, (K, J), if this phrase has at least half of their softmax
    and the patch's gain over the clip's average patch, (K, J), is positive.
    """
    shares, best = (scores * temperature).softmax(dim=1).max(dim=1)  # (K,) each
    is_weak = (shares < 0.5) | (gains.gather(1, best[:, None])[:, 0] <= 0)
    return best.masked_fill(is_weak, NO_PHRASE)


__all__ = [
    "NO_PHRASE",
    "ExpectedCaption",
    "Matching",
    "Phrase",
    "VideoExplanation",
    "explain_video",
    "split_phrases",
]
