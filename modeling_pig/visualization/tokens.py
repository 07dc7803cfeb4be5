"""What a model looked at in a video, and which phrase of a query each of the patches it selected stands for.

Shapes: T frames, P patches a frame in `rows` x `columns`, K selected patches, S context tokens, J phrases, D width of
the joint space.
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

# Where a query is cut. "to" and "of" are not among them ("moves to the left", "a cup of tea"), nor is "and" before
# "then": what one thing does in turn stays one phrase.
_CUTTING_WORDS = (
    "above across along and are around as at behind below beside between but by for from in inside into is near next "
    "on onto or over that through under was were when where which while who with"
).split()
# A piece of these alone is no phrase: "jumps up and down" leaves "jumps up".
_SMALL_WORDS = set(
    "a an away back down he her his it its of off out she some the their then there these they this those to "
    "up".split()
)
_CUT = re.compile(
    rf"(?<![\w'-])(?:{'|'.join(_CUTTING_WORDS)})(?![\w'-])(?!\s+then\b)|[,;:.!?](?=\s|$)|[()\"“”–—]", re.IGNORECASE
)


class Phrase(NamedTuple):
    """A part of a query: its text, and where in the query it stands, `(start, end)` for each time that it comes."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ExpectedCaption(NamedTuple):
    """A caption and its cosine with a video's pseudo-query."""

    caption: str
    cosine: float


@dataclass
class VideoExplanation:
    """What [`explain_video`] found; what is `None` needs a `hybrid` model.

    Attributes:
        query (`str`): the query, with single spaces.
        score (`float`): its similarity to the video, a cosine: what retrieval ranks by.
        frames (`np.ndarray` of shape `(T, height, width, 3)`): what the model saw, before it was squeezed to a square.
        frame_numbers (`list[int]`): their numbers in the video, from 0.
        attention (`np.ndarray` of shape `(T, rows, columns)`):
            The class token's attention to each patch in the last layer, reduced over the heads as the selector does,
            in multiples of an even share: 1 is what a patch gets from a token that attends to all alike.
        phrases (`list[Phrase]`): J parts of the query, from [`split_phrases`].
        selected_patches (`np.ndarray` of shape `(K,)`, *optional*): best first; patch `p` of frame `t` is `t * P + p`.
        matches (`np.ndarray` of shape `(K,)`, *optional*):
            For each selected patch the number of its phrase, `NO_PHRASE` where none fits well.
        pseudo_query (`np.ndarray` of shape `(D,)`, *optional*): the video's pseudo-query, normalised.
        query_cosine (`float`, *optional*): cosine of the query with it.
        expected (`list[ExpectedCaption]`, *optional*): the captions nearest to the pseudo-query, nearest first.
        num_captions (`int`): of how many different ones they are the nearest.
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


def split_phrases(query: str) -> list[Phrase]:
    """Cuts a query at punctuation, conjunctions, prepositions and forms of "to be", all of which it leaves out; pieces
    without a word of content are dropped. The rule is made for English; a query that it finds nothing in is
    one phrase.

    Example:

    ```python
    >>> [phrase.text for phrase in split_phrases("A red circle spins and then grows, a dog is running on the beach")]
    ['A red circle spins and then grows', 'a dog', 'running', 'the beach']
    ```"""
    spans: dict[str, list[tuple[int, int]]] = {}
    start = 0
    for end, following in [*(match.span() for match in _CUT.finditer(query)), (len(query), len(query))]:
        piece = query[start:end]
        if set(re.findall(r"\w+", piece.lower())) - _SMALL_WORDS:
            first = start + len(piece) - len(piece.lstrip())
            spans.setdefault(piece.strip().lower(), []).append((first, first + len(piece.strip())))
        start = following
    phrases = [Phrase(query[slice(*places[0])], tuple(places)) for places in spans.values()]
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
    """Looks into a model on its way through one video: where its class token attends, what it selects, and which
    phrase of the query each selected patch stands for.

    `two_tower` and `single_tower` models have the attention, but no selector and no pseudo-query.

    Args:
        video (`str` or `Path`): a video file, or a folder of numbered JPEG frames.
        query (`str`): the sentence.
        captions (`Sequence[str]`): captions to find those in that the model expected to be asked; `hybrid` only.
        matching (`str`): how a patch meets a phrase, both in the joint space.
            `"pseudo_query"`: by how much the patch moves the pseudo-query towards the phrase, the only way in which a
            patch acts on the video's embedding: the cosine of the phrase with the pseudo-query that is generated with
            this patch, less that without it, all other selected patches being replaced by the clip's average patch.
            `"token"`: by the cosine of the patch's own token with the phrase's embedding. No loss acts on this cosine:
            `examples/check_selection.py` tells whether a model has it right.
            With either, a match is weak, and the patch stays without a phrase, if the patch is no nearer to the phrase
            than the average patch of the clip, or if the phrase gets less than half of a softmax over all phrases at
            the model's own temperature.
        num_frames (`int`, *optional*): frames to look at; by default those of the processor.
        num_expected (`int`): how many captions to return.
        start, end (`float`, *optional*): seconds after the first frame between which lies the part to look at, as for
            [`decode_video`]; by default the whole video.

    Raises:
        ValueError: an empty query, captions for a model that generates no pseudo-query, or too many frames.
        VideoDecodingError: a video that cannot be decoded.
    """
    query = " ".join(query.split())
    if not query:
        raise ValueError("The query is empty: say what to look for.")
    framework, vision_config = model.config.framework, model.config.vision_config
    if captions and framework != "hybrid":
        raise ValueError(f"This is a {framework} model, which generates no pseudo-query: leave the captions out.")

    frames, metadata = decode_video(video, num_frames or processor.video_processor.num_frames, start=start, end=end)
    inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
    pixels = inputs["pixel_values_videos"].to(model.device, model.dtype)  # (1, T, 3, height, width)
    features = model.get_video_features(pixels)
    outputs = model.vision_model(pixels, output_class_attention=True)  # all tokens, which the features leave out
    rows, columns = (side // vision_config.patch_size for side in pixels.shape[3:])

    def patches_of(tokens: torch.Tensor) -> torch.Tensor:
        """(N, ...) class, globals and frames -> (T, P, ...)."""
        in_frames = tokens[1 + vision_config.num_global_tokens :].unflatten(0, (len(frames), -1))
        return in_frames[:, -rows * columns :]  # the frame token stands first

    reduce = torch.amax if model.config.selector_head_reduction == "max" else torch.mean
    attention = reduce(outputs.class_attention[0], dim=0)  # (N,)
    attention = patches_of(attention * len(attention)).unflatten(1, (rows, columns))  # (T, rows, columns)

    phrases = split_phrases(query)
    texts = encode_texts(model, processor, [query, *(phrase.text for phrase in phrases)])  # (1 + J, D)
    texts = texts.to(model.device)
    video_embeds = features.context_embeds if framework == "single_tower" else features.pooler_output
    explanation = VideoExplanation(
        query=query,
        score=model.similarity(texts[:1], video_embeds.float()).item(),
        frames=frames,
        frame_numbers=[int(number) for number in metadata.frames_indices or ()],
        attention=attention.float().cpu().numpy(),
        phrases=phrases,
    )
    if framework != "hybrid":
        return explanation

    patches = patches_of(_to_joint_space(model, outputs.last_hidden_state)[0]).flatten(0, 1)  # (T * P, D)
    selected = features.selected_patches[0]  # (K,)
    if matching == "token":
        cosines = normalize(patches.float(), dim=-1) @ texts[1:].t()  # (T * P, J)
        scores, gains = cosines[selected], cosines[selected] - cosines.mean(dim=0)  # (K, J) each
    else:
        scores = gains = _gains_of_pseudo_query(model, features.context_embeds[0], patches, selected, texts[1:])
    explanation.selected_patches = selected.cpu().numpy()
    explanation.matches = _match(scores, gains, model.logit_scale.exp().item()).cpu().numpy()

    pseudo_query = normalize(features.pseudo_query_embeds.float(), dim=-1)[0]  # (D,)
    explanation.pseudo_query = pseudo_query.cpu().numpy()
    explanation.query_cosine = (texts[0] @ pseudo_query).item()
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
    """By how much each selected patch alone moves the pseudo-query towards each phrase, in cosine, (K, J).

    The other places for patches are filled with the average patch of the clip: the generator knows no other length.
    """
    num_selected = len(selected)
    alone = patches.mean(dim=0).repeat(1 + num_selected, num_selected, 1)  # (1 + K, K, D): no patch, then one each
    places = torch.arange(num_selected, device=selected.device)
    alone[1 + places, places] = patches[selected]
    tokens = torch.cat([context.expand(1 + num_selected, -1, -1), alone], dim=1)  # (1 + K, S + K, D)
    cosines = normalize(model.generator(tokens).float(), dim=-1) @ phrases.t()  # (1 + K, J)
    return cosines[1:] - cosines[0]


def _match(scores: torch.Tensor, gains: torch.Tensor, temperature: float) -> torch.Tensor:
    """Number of each patch's phrase, (K,), or `NO_PHRASE`: the one with the highest of the scores, (K, J), if it has
    half of their softmax or more, and a gain over the clip's average patch, (K, J)."""
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
