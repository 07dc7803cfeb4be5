# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""PyTorch PIG model: text-to-video retrieval with pseudo-queries (the Hybrid-Tower paper, arXiv 2509.04773).

The way of a video: frames -> [`PigVisionTransformer`] (a CLIP ViT with video tokens) -> [`PigPatchSelector`] (the
patches that the class token attends to most) -> [`PigPseudoQueryGenerator`] (an embedding of the query that should
find this video) -> [`PigInteraction`] (the tokens of the video, pooled for the pseudo-query) -> one embedding.

Shapes: B videos, Q queries, T frames, P patches per frame, L tokens per frame (its frame token and P patches),
M video tokens (class token and G global tokens), N = M + T * L tokens in total, S = M + T context tokens (all tokens
but the patches), K selected patches, H heads, C hidden size of the vision tower, D embedding dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPTextModel,
    CLIPTextModelOutput,
    CLIPTextModelWithProjection,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_pig import PigConfig, PigTextConfig, PigVisionConfig, load_clip_config
from .loss_pig import PigLosses, compute_logits, compute_losses, mean_losses
from .weights_pig import safetensors_revision


logger = logging.get_logger(__name__)

# Standard deviation of the noise on global tokens that start as the class embedding, relative to that embedding's.
GLOBAL_TOKEN_NOISE = 0.1


@dataclass
class PigVisionOutput(BaseModelOutputWithPooling):
    """Output of [`PigVisionTransformer`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, N, C)`, or `(B, S + K, C)` with a selector):
            Class token, global tokens, then the tokens of each frame, before the last norm. With a selector: context
            tokens, then the selected patches.
        pooler_output (`torch.Tensor` of shape `(B, C)`): class token after the last norm.
        class_attention (`torch.Tensor` of shape `(B, H, N)`, *optional*):
            Attention of the class token to every token in the last layer, after softmax.
        selected_patches, selection_scores (`torch.Tensor` of shape `(B, K)`, *optional*):
            As in [`PigVideoFeatures`].
    """

    class_attention: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None


@dataclass
class PigVideoFeatures(BaseModelOutputWithPooling):
    """Output of `get_video_features`.

    Args:
        pooler_output (`torch.Tensor` of shape `(B, D)`):
            Embedding of the video to index, not normalised. For `single_tower` it is the class token; index
            `context_embeds` instead.
        context_embeds (`torch.Tensor` of shape `(B, S, D)`): class, global and frame tokens after projection.
        pseudo_query_embeds (`torch.Tensor` of shape `(B, D)`, *optional*): generated pseudo-query; `hybrid` only.
        selected_patches (`torch.Tensor` of shape `(B, K)`, *optional*):
            Positions of the selected patches among the T * P patches of the clip, in descending order of their score:
            patch `p` of frame `t` has position `t * P + p`; `hybrid` only.
        selection_scores (`torch.Tensor` of shape `(B, K)`, *optional*):
            Attention of the class token to the selected patches, reduced over the heads; `hybrid` only.
        last_hidden_state (`torch.Tensor` of shape `(B, S + K, C)`):
            Context tokens and selected patches. The MLP of the last layer skips all other tokens; to get all tokens,
            call `vision_model` without a selector.
        hidden_states, attentions: as in the output of [`PigVisionTransformer`].
    """

    context_embeds: torch.FloatTensor | None = None
    pseudo_query_embeds: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None


@dataclass
class PigVideoModelOutput(ModelOutput):
    """Output of [`PigVideoModel`]: `video_embeds` is the embedding to index; the rest as in [`PigVideoFeatures`]."""

    video_embeds: torch.FloatTensor | None = None
    context_embeds: torch.FloatTensor | None = None
    pseudo_query_embeds: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PigOutput(ModelOutput):
    """Output of [`PigForRetrieval`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, with `return_loss=True`):
            `retrieval_loss + config.reconstruction_loss_weight * reconstruction_loss`, plus
            `config.reranking_loss_weight * reranking_loss` if that weight is not 0.
        retrieval_loss (`torch.Tensor` of shape `()`, *optional*): contrastive loss, a sum over both directions.
        reconstruction_loss (`torch.Tensor` of shape `()`, *optional*):
            Distance of pseudo-query and query; `hybrid` only.
        reranking_loss (`torch.Tensor` of shape `()`, *optional*):
            Contrastive loss of videos that are pooled for each query; `hybrid` with a `reranking_loss_weight` only.
        logits_per_text (`torch.Tensor` of shape `(Q, B)`): cosines times the exponential of `logit_scale`.
        logits_per_video (`torch.Tensor` of shape `(B, Q)`): transpose of `logits_per_text`.
        text_embeds (`torch.Tensor` of shape `(Q, D)`): embeddings of the queries, normalised.
        video_embeds (`torch.Tensor` of shape `(B, D)`, or `(B, S, D)` for `single_tower`):
            Embeddings of the videos, normalised. For `single_tower`, in which the embedding of a video depends on the
            query, the context tokens, not normalised.
        pseudo_query_embeds (`torch.Tensor` of shape `(B, D)`, *optional*): pseudo-queries, normalised; `hybrid` only.
        context_embeds (`torch.Tensor` of shape `(B, S, D)`, *optional*):
            Context tokens of the videos; `hybrid` with a `reranking_loss_weight` only.
        selected_patches, selection_scores (`torch.Tensor` of shape `(B, K)`, *optional*):
            As in [`PigVideoFeatures`]; with `output_selection=True` only.
        text_model_output (`BaseModelOutputWithPooling`): output of `get_text_features`.
        vision_model_output (`PigVideoFeatures`): output of `get_video_features`.
    """

    loss: torch.FloatTensor | None = None
    retrieval_loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    reranking_loss: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    pseudo_query_embeds: torch.FloatTensor | None = None
    context_embeds: torch.FloatTensor | None = None
    selected_patches: torch.LongTensor | None = None
    selection_scores: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: PigVideoFeatures | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class PigVideoEmbeddings(CLIPVisionEmbeddings):
    """Embed the patches of all frames as CLIP does, and add CLIP-ViP's video tokens and a temporal embedding."""

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.global_embedding = nn.Parameter(torch.empty(config.num_global_tokens, self.embed_dim))
        self.temporal_embedding = nn.Parameter(torch.empty(1, config.num_frames, self.embed_dim))
        # All frames share one vector: the temporal embedding distinguishes them.
        self.frame_embedding = nn.Parameter(torch.empty(self.embed_dim)) if config.use_frame_tokens else None

    def spatial_positions(self, height: int, width: int, interpolate: bool) -> torch.Tensor:
        """Return the position embeddings of a frame, (1 + P, C): row 0 for video and frame tokens, then patches."""
        positions = self.position_embedding.weight
        side = self.image_size // self.patch_size
        grid = (height // self.patch_size, width // self.patch_size)
        if grid == (side, side):
            return positions
        if not interpolate:
            raise ValueError(
                f"Frames are {height} x {width} pixels, the model reads {self.image_size} x {self.image_size}: resize "
                "them with PigVideoProcessor, or pass interpolate_pos_encoding=True."
            )
        square = positions[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
        patches = nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([positions[:1], patches.flatten(2)[0].t()])

    def temporal_positions(self, num_frames: int) -> torch.Tensor:
        """Return the temporal embedding, (1, T, C), linearly interpolated if T is not `config.num_frames`."""
        temporal = self.temporal_embedding
        if num_frames == temporal.shape[1]:
            return temporal
        return nn.functional.interpolate(temporal.transpose(1, 2), size=num_frames, mode="linear").transpose(1, 2)

    def forward(self, pixel_values_videos: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Embed clips, (B, T, 3, height, width) -> (B, N, C): class token, global tokens, frame 1, frame 2, ..."""
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[2] != self.config.num_channels:
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixel_values_videos.shape)}; expected (batch, frames, "
                f"{self.config.num_channels}, height, width)."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if num_frames == 0:
            raise ValueError("pixel_values_videos holds clips of 0 frames; expected 1 or more.")
        spatial = self.spatial_positions(height, width, interpolate_pos_encoding)  # (1 + P, C)
        temporal = self.temporal_positions(num_frames).unsqueeze(2)  # (1, T, 1, C)

        images = pixel_values_videos.flatten(0, 1).to(self.patch_embedding.weight.dtype)  # (B * T, 3, height, width)
        tokens = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (B * T, P, C)
        tokens = tokens.unflatten(0, (batch_size, num_frames)) + spatial[1:] + temporal  # (B, T, P, C)
        if self.frame_embedding is not None:
            frame_tokens = (self.frame_embedding + spatial[0] + temporal).expand(batch_size, -1, -1, -1)
            tokens = torch.cat([frame_tokens, tokens], dim=2)  # (B, T, L, C)

        video_tokens = torch.cat([self.class_embedding[None], self.global_embedding]) + spatial[0]  # (M, C)
        return torch.cat([video_tokens.expand(batch_size, -1, -1), tokens.flatten(1, 2)], dim=1)  # (B, N, C)


class PigVisionAttention(CLIPAttention):
    """Compute CLIP's attention in the pattern of CLIP-ViP, in two dense parts instead of under an N x N mask.

    The video tokens attend to all tokens; the tokens of a frame attend to the video tokens and to their own frame.
    """

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.num_video_tokens = 1 + config.num_global_tokens

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int,
        output_class_attention: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Attend from each token of a clip to the tokens that the pattern allows.

        Args:
            hidden_states (`torch.Tensor` of shape `(B, N, C)`): tokens.
            num_frames (`int`): number of frames, T.
            output_class_attention (`bool`, *optional*, defaults to `False`):
                Also return the attention of the class token; available with every attention implementation.

        Returns:
            `tuple`: hidden states, `(B, N, C)`; with `output_attentions` and an implementation that computes them, all
            weights, `(B, H, N, N)`, zero where the pattern forbids attention; with `output_class_attention`, the
            weights of the class token, `(B, H, N)`.
        """
        num_video_tokens = self.num_video_tokens
        heads = (self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).unflatten(-1, heads)  # (B, N, H, C / H)
        key = self.k_proj(hidden_states).unflatten(-1, heads)
        value = self.v_proj(hidden_states).unflatten(-1, heads)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        settings = {"scaling": self.scale, "dropout": self.dropout if self.training else 0.0, **kwargs}

        video_output, video_weights = attention_interface(
            self,
            query[:, :num_video_tokens].transpose(1, 2),  # (B, H, M, C / H)
            key.transpose(1, 2),  # (B, H, N, C / H)
            value.transpose(1, 2),
            None,
            **settings,
        )  # (B, M, H, C / H)

        frame_query, frame_key, frame_value = (
            states[:, num_video_tokens:].unflatten(1, (num_frames, -1)) for states in (query, key, value)
        )  # (B, T, L, H, C / H)
        frame_output, frame_weights = attention_interface(
            self,
            frame_query.flatten(0, 1).transpose(1, 2),  # (B * T, H, L, C / H)
            self._with_video_tokens(key, frame_key).transpose(1, 2),  # (B * T, H, M + L, C / H)
            self._with_video_tokens(value, frame_value).transpose(1, 2),
            None,
            **settings,
        )  # (B * T, L, H, C / H)

        frame_output = frame_output.reshape(hidden_states.shape[0], -1, self.embed_dim)  # (B, T * L, C)
        output = self.out_proj(torch.cat([video_output.flatten(2), frame_output], dim=1))  # (B, N, C)

        weights = None
        if video_weights is not None and kwargs.get("output_attentions", self.config.output_attentions):
            weights = self._dense_weights(video_weights, frame_weights, num_frames)
        class_attention = None
        if output_class_attention:
            with torch.no_grad():  # the weights only choose patches: no gradient flows through the choice
                scores = torch.einsum("bhc,bnhc->bhn", query[:, 0], key) * self.scale
                class_attention = scores.softmax(dim=-1, dtype=torch.float32)
        return output, weights, class_attention

    def _with_video_tokens(self, states: torch.Tensor, frame_states: torch.Tensor) -> torch.Tensor:
        """Put the M video tokens before the tokens of each frame: (B, T, L, ...) -> (B * T, M + L, ...)."""
        video_states = states[:, None, : self.num_video_tokens].expand(-1, frame_states.shape[1], -1, -1, -1)
        return torch.cat([video_states, frame_states], dim=2).flatten(0, 1)

    def _dense_weights(
        self, video_weights: torch.Tensor, frame_weights: torch.Tensor, num_frames: int
    ) -> torch.Tensor:
        """Combine the weights of video tokens, (B, H, M, N), and of frames, (B * T, H, L, M + L), to (B, H, N, N)."""
        batch_size, num_heads, num_video_tokens, num_tokens = video_weights.shape
        frame_weights = frame_weights.unflatten(0, (batch_size, num_frames)).transpose(1, 2)  # (B, H, T, L, M + L)
        weights = video_weights.new_zeros(batch_size, num_heads, num_tokens, num_tokens)
        weights[:, :, :num_video_tokens] = video_weights
        for frame, within_frame in enumerate(frame_weights.unbind(2)):  # (B, H, L, M + L)
            tokens_per_frame = within_frame.shape[2]
            start = num_video_tokens + frame * tokens_per_frame
            rows = slice(start, start + tokens_per_frame)
            weights[:, :, rows, :num_video_tokens] = within_frame[..., :num_video_tokens]
            weights[:, :, rows, rows] = within_frame[..., num_video_tokens:]
        return weights


class PigPatchSelector(nn.Module):
    """Keep the tokens of a clip that later modules read: context tokens and, for `hybrid`, informative patches.

    This is the Informative Token Selector of the paper. It has no parameters: it selects the patches with the highest
    attention of the class token over the whole clip. The last layer of [`PigVisionTransformer`] calls it after
    attention, so that only kept tokens go through its MLP.
    """

    def __init__(self, config: PigConfig):
        super().__init__()
        self.config = config
        self.selects_patches = config.framework == "hybrid"

    def forward(
        self, hidden_states: torch.Tensor, class_attention: torch.Tensor | None, num_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Select patches and keep them with the context tokens.

        Args:
            hidden_states (`torch.Tensor` of shape `(B, N, C)`): all tokens of the clips.
            class_attention (`torch.Tensor` of shape `(B, H, N)`, *optional*):
                Attention of the class token to every token; not read if `selects_patches` is `False`.
            num_frames (`int`): number of frames, T.

        Returns:
            `tuple`: kept tokens, `(B, S + K, C)`, context tokens first, then the selected patches in descending order
            of score; positions of the selected patches among the T * P patches and their scores, `(B, K)` each, or
            `None` (and K = 0) if `selects_patches` is `False`.
        """
        batch_size, num_tokens, hidden_size = hidden_states.shape
        context, patches = self.token_positions(num_frames, num_tokens, hidden_states.device)
        if not self.selects_patches:
            return hidden_states[:, context], None, None
        scores, selected = self.select(class_attention[:, :, patches], num_frames)  # (B, K) each
        kept = torch.cat([context.expand(batch_size, -1), patches[selected]], dim=1)  # (B, S + K)
        hidden_states = hidden_states.gather(1, kept.unsqueeze(-1).expand(-1, -1, hidden_size))
        return hidden_states, selected, scores

    def token_positions(
        self, num_frames: int, num_tokens: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions among N tokens of the context tokens, (S,), and of the patches, (T * P,)."""
        config = self.config.vision_config
        positions = torch.arange(num_tokens, device=device)
        video_tokens, frames = positions.tensor_split([1 + config.num_global_tokens])
        frame_tokens, patches = frames.view(num_frames, -1).tensor_split([int(config.use_frame_tokens)], dim=1)
        return torch.cat([video_tokens, frame_tokens.flatten()]), patches.flatten()

    def select(self, patch_attention: torch.Tensor, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and positions of the best patches, (B, K) each, from their attention, (B, H, T * P)."""
        reduce = torch.amax if self.config.selector_head_reduction == "max" else torch.mean
        scores = reduce(patch_attention, dim=1)  # (B, T * P)
        num_selected = self.config.num_selected_patches
        if num_selected > scores.shape[1]:
            logger.warning_once(
                f"num_selected_patches is {num_selected}, but a clip of {num_frames} frames has only "
                f"{scores.shape[1]} patches: all patches are selected."
            )
            num_selected = scores.shape[1]
        return scores.topk(num_selected, dim=1)


class PigVisionLayer(CLIPEncoderLayer):
    """Encode tokens as a CLIP layer does, with [`PigVisionAttention`]."""

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.self_attn = PigVisionAttention(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int,
        output_class_attention: bool = False,
        selector: PigPatchSelector | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Encode tokens, (B, N, C) -> (B, N, C), or with a `selector` the kept tokens only, (B, S + K, C).

        Also return the class attention, the selected patches and their scores, as in [`PigVisionOutput`].
        """
        attention_output, _, class_attention = self.self_attn(
            self.layer_norm1(hidden_states),
            num_frames=num_frames,
            output_class_attention=output_class_attention or (selector is not None and selector.selects_patches),
            **kwargs,
        )
        hidden_states = hidden_states + attention_output
        selected_patches = selection_scores = None
        if selector is not None:
            hidden_states, selected_patches, selection_scores = selector(hidden_states, class_attention, num_frames)
        hidden_states = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return hidden_states, class_attention, selected_patches, selection_scores


class PigVisionEncoder(nn.Module):
    """Hold the layers of the vision tower, as CLIP's encoder does."""

    def __init__(self, config: PigVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(PigVisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int,
        output_class_attention: bool = False,
        selector: PigPatchSelector | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Run all layers; the last one returns the class attention and calls the selector, see [`PigVisionLayer`]."""
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, num_frames=num_frames, **kwargs)[0]
        return self.layers[-1](
            hidden_states,
            num_frames=num_frames,
            output_class_attention=output_class_attention,
            selector=selector,
            **kwargs,
        )


class PigInteraction(nn.Module):
    """Pool the tokens of a video for a query (X-Pool's cross-attention).

    All projections are initialised as the identity, so that training starts from plain attention pooling.
    """

    def __init__(self, config: PigConfig):
        super().__init__()
        embedding_dim = config.projection_dim
        self.num_heads = config.interaction_num_attention_heads
        # The frame tokens follow the class token and the global tokens.
        self.first_token = 1 + config.vision_config.num_global_tokens if config.interaction_tokens == "frames" else 0
        self.q_proj = nn.Linear(embedding_dim, embedding_dim)
        self.k_proj = nn.Linear(embedding_dim, embedding_dim)
        self.v_proj = nn.Linear(embedding_dim, embedding_dim)
        self.out_proj = nn.Linear(embedding_dim, embedding_dim)
        self.linear_proj = nn.Linear(embedding_dim, embedding_dim)
        self.layer_norm1 = nn.LayerNorm(embedding_dim)
        self.layer_norm2 = nn.LayerNorm(embedding_dim)
        self.layer_norm3 = nn.LayerNorm(embedding_dim)
        self.dropout = nn.Dropout(config.interaction_dropout)

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Pool each video for each query.

        Args:
            queries (`torch.Tensor` of shape `(B, Q, D)` or `(1, Q, D)`): queries of each video, or of all videos.
            context (`torch.Tensor` of shape `(B, S, D)`): context tokens of the videos; with `interaction_tokens` of
                `"frames"`, only the frame tokens among them are pooled.

        Returns:
            `torch.Tensor` of shape `(B, Q, D)`.
        """
        heads = (self.num_heads, -1)
        queries = self.layer_norm1(queries)
        context = self.layer_norm1(context[:, self.first_token :])
        query = self.q_proj(queries).unflatten(-1, heads).transpose(1, 2)  # (B or 1, heads, Q, D / heads)
        key = self.k_proj(context).unflatten(-1, heads).transpose(1, 2)  # (B, heads, S, D / heads)
        value = self.v_proj(context).unflatten(-1, heads).transpose(1, 2)
        query = query.expand(context.shape[0], -1, -1, -1)
        pooled = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, heads, Q, D / heads)
        pooled = self.layer_norm2(self.out_proj(pooled.transpose(1, 2).flatten(2)))  # (B, Q, D)
        return self.layer_norm3(pooled + self.dropout(self.linear_proj(pooled)))


class _LoadingMixin:
    """Initialise and load weights as the models of transformers do."""

    def __init__(self, config: PreTrainedConfig, *args, **kwargs):
        # Only eager attention returns attentions. The setter of `output_attentions` selects it, or raises `ValueError`
        # if another implementation was requested; a configuration that is created with the flag skips the setter.
        for configuration in (config, *(getattr(config, name) for name in config.sub_configs)):
            if configuration.output_attentions:
                configuration.output_attentions = True
        super().__init__(config, *args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return `False`, so that transformers initialises every module.

        transformers assumes that code outside its package does not use `transformers.initialization`, and skips
        modules without direct parameters: attention, MLP and interaction would keep PyTorch's default initialisation.
        This file does use `transformers.initialization`.
        """
        return False

    @classmethod
    def from_pretrained(cls, *args, use_safetensors: bool = True, **kwargs):
        """Load as in transformers, but read a pickle (`pytorch_model.bin`) only with `use_safetensors=False`."""
        return super().from_pretrained(*args, use_safetensors=use_safetensors, **kwargs)


class PigPreTrainedModel(_LoadingMixin, CLIPPreTrainedModel):
    """Initialise and load weights; base class of all PIG models."""

    config: PigConfig
    config_class = PigConfig
    base_model_prefix = "pig"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _no_split_modules = ["CLIPEncoderLayer", "PigVideoEmbeddings", "PigVisionLayer"]
    _can_record_outputs = None

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights other than `logit_scale`, which stays in float32."""
        return next(p.dtype for name, p in self.named_parameters() if name != "logit_scale")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, PigVideoEmbeddings):
            init.normal_(module.global_embedding, std=module.embed_dim**-0.5 * factor)
            init.zeros_(module.temporal_embedding)
            if module.frame_embedding is not None:
                init.copy_(module.frame_embedding, module.class_embedding)
        elif isinstance(module, PigPseudoQueryGenerator):
            hidden_size = module.eos_embedding.shape[0]
            for vector in (module.bos_embedding, module.eos_embedding, module.position_embedding.weight):
                if vector is not None:
                    init.normal_(vector, std=0.02 * factor)
            init.normal_(module.input_projection.weight, std=module.input_projection.in_features**-0.5 * factor)
            if module.text_projection is not None:
                init.normal_(module.text_projection.weight, std=hidden_size**-0.5 * factor)
        elif isinstance(module, PigInteraction):
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.out_proj, module.linear_proj):
                init.eye_(projection.weight)
                init.zeros_(projection.bias)
        elif isinstance(module, PigForRetrieval):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            init.normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5 * factor)
        if isinstance(module, _VideoFeaturesMixin):
            init.normal_(module.visual_projection.weight, std=module.visual_projection.in_features**-0.5 * factor)


class PigVisionTransformer(PigPreTrainedModel):
    """Encode all frames of a clip with a CLIP ViT that has video proxy tokens: the vision tower."""

    config: PigVisionConfig
    config_class = PigVisionConfig
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": PigVisionLayer, "attentions": PigVisionAttention}

    def __init__(self, config: PigVisionConfig):
        super().__init__(config)
        self.embeddings = PigVideoEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = PigVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        output_class_attention: bool = False,
        selector: PigPatchSelector | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigVisionOutput:
        """Encode clips.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, 3, height, width)`):
                Normalised frames; T may differ from `config.num_frames`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Accept frames of another size than `config.image_size`.
            output_class_attention (`bool`, *optional*, defaults to `False`):
                Also return the attention of the class token in the last layer.
            selector ([`PigPatchSelector`], *optional*):
                Chooses the tokens that go through the MLP of the last layer. By default all tokens do.
            output_attentions (`bool`, *optional*, needs `attn_implementation="eager"`):
                Also return the weights of each layer, `(B, H, N, N)`, zero where a frame does not see another frame.

        Returns:
            [`PigVisionOutput`].

        Raises:
            ValueError: `pixel_values_videos` has a wrong shape.
        """
        hidden_states = self.embeddings(pixel_values_videos, interpolate_pos_encoding)  # (B, N, C)
        hidden_states = self.pre_layrnorm(hidden_states)
        hidden_states, class_attention, selected_patches, selection_scores = self.encoder(
            hidden_states, pixel_values_videos.shape[1], output_class_attention, selector, **kwargs
        )  # (B, N or S + K, C)
        return PigVisionOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.post_layernorm(hidden_states[:, 0]),
            class_attention=class_attention,
            selected_patches=selected_patches,
            selection_scores=selection_scores,
        )


class PigPseudoQueryGenerator(PigPreTrainedModel):
    """Generate the pseudo-query t_p of a video: an embedding of the query that should find it.

    A causal transformer with the shape of the text tower reads [bos, tokens, eos]; its state at eos is the
    pseudo-query.
    """

    config: PigTextConfig
    config_class = PigTextConfig
    main_input_name = "tokens"

    def __init__(self, config: PigTextConfig, pig_config: PigConfig):
        super().__init__(config)
        hidden_size = config.hidden_size
        make_end = nn.Parameter if pig_config.generator_learnable_ends else nn.Buffer
        self.input_projection = nn.Linear(pig_config.projection_dim, hidden_size)
        self.bos_embedding = make_end(torch.empty(hidden_size)) if pig_config.generator_use_bos else None
        self.eos_embedding = make_end(torch.empty(hidden_size))
        self.position_embedding = nn.Embedding(pig_config.generator_max_position_embeddings, hidden_size)
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(pig_config.generator_num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.text_projection = (
            nn.Linear(hidden_size, pig_config.projection_dim, bias=False)
            if pig_config.generator_use_projection
            else None
        )
        self.post_init()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Generate pseudo-queries, (B, S + K, D) -> (B, D), from context tokens followed by selected patches."""
        batch_size = tokens.shape[0]
        sequence = [self.input_projection(tokens), self.eos_embedding.expand(batch_size, 1, -1)]
        if self.bos_embedding is not None:
            sequence.insert(0, self.bos_embedding.expand(batch_size, 1, -1))
        hidden_states = torch.cat(sequence, dim=1)  # (B, 1 + S + K + 1, hidden_size)
        hidden_states = hidden_states + self.position_embedding.weight[: hidden_states.shape[1]]
        # The last argument, the cache, is positional because transformers 5.24 renamed it.
        causal_mask = create_causal_mask(self.config, hidden_states, None, None)
        for layer in self.layers:
            hidden_states = layer(hidden_states, causal_mask, is_causal=True)
        pseudo_query = self.final_layer_norm(hidden_states[:, -1])  # (B, hidden_size)
        return pseudo_query if self.text_projection is None else self.text_projection(pseudo_query)  # (B, D)


def _check_device(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    """Raise `ValueError` if `tensor` is not on the model's device, unless the model is spread over several."""
    if tensor.device != model.device and not hasattr(model, "hf_device_map"):
        raise ValueError(f"{name} is on {tensor.device}, the model on {model.device}: move one of them with .to(...).")


def _with_output_flags(config: PreTrainedConfig, kwargs: dict) -> dict:
    """Add the flags of a model's config that its towers do not see to `kwargs`, which take precedence."""
    names = ("output_hidden_states", "output_attentions")
    return {name: True for name in names if getattr(config, name)} | kwargs


class _TextFeaturesMixin:
    """Compute embeddings of queries, in [`PigTextModel`] and [`PigForRetrieval`]."""

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Compute embeddings of queries.

        Args:
            input_ids (`torch.LongTensor` of shape `(Q, tokens)`): token ids; each row holds an end-of-text token.
            attention_mask (`torch.Tensor` of shape `(Q, tokens)`, *optional*): 0 for padding, 1 for tokens.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output`, `(Q, D)`, holds the embeddings, not normalised.

        Raises:
            ValueError: `input_ids` are on another device than the model.

        Example:

        ```python
        >>> inputs = processor(text=["a red circle moves left"], return_tensors="pt")
        >>> with torch.inference_mode():
        ...     text_embeds = model.get_text_features(**inputs).pooler_output
        ```"""
        _check_device(self, "input_ids", input_ids)
        outputs: BaseModelOutputWithPooling = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **_with_output_flags(self.config, kwargs),
        )
        # CLIPTextModel takes an eos_token_id of 2, that of MetaCLIP 2, for the wrong one of early CLIP checkpoints.
        states = outputs.last_hidden_state  # (Q, tokens, hidden_size)
        is_end = (input_ids == self.text_model.eos_token_id).to(states.device)  # (Q, tokens)
        rows = torch.arange(states.shape[0], device=states.device)  # not len(): exported models take any Q
        outputs.pooler_output = self.text_projection(states[rows, is_end.int().argmax(dim=-1)])  # (Q, D)
        return outputs


class _VideoFeaturesMixin:
    """Compute embeddings of videos, in [`PigVideoModel`] and [`PigForRetrieval`].

    This is a mixin and not a submodule, so that `vision_model` and `visual_projection` have the names of CLIP.
    """

    def _init_video_modules(self, config: PigConfig):
        self.vision_model = PigVisionTransformer._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.selector = PigPatchSelector(config)
        if config.framework == "hybrid":
            self.generator = PigPseudoQueryGenerator._from_config(config.text_config, pig_config=config)
        if config.framework != "two_tower":
            self.interaction = PigInteraction(config)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigVideoFeatures:
        r"""Compute embeddings of videos.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, 3, height, width)`):
                Normalised frames; T may differ from `config.vision_config.num_frames`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Accept frames of another size than `config.vision_config.image_size`.

        Returns:
            [`PigVideoFeatures`]: `pooler_output`, `(B, D)`, holds the embeddings. Normalise them before indexing.

        Raises:
            ValueError: `pixel_values_videos` has a wrong shape, is on another device than the model, or has more
                frames than the generator has positions for.

        Example:

        ```python
        >>> inputs = processor(videos="video.mp4", return_tensors="pt")
        >>> with torch.inference_mode():
        ...     video_embeds = model.get_video_features(**inputs).pooler_output
        ```"""
        _check_device(self, "pixel_values_videos", pixel_values_videos)
        is_hybrid = self.config.framework == "hybrid"
        num_frames = pixel_values_videos.shape[1] if pixel_values_videos.ndim == 5 else 0
        if is_hybrid:
            self.config.check_generator_length(num_frames)
        outputs: PigVisionOutput = self.vision_model(
            pixel_values_videos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            selector=self.selector,
            return_dict=True,
            **_with_output_flags(self.config, kwargs),
        )
        tokens = self.visual_projection(self.vision_model.post_layernorm(outputs.last_hidden_state))  # (B, S + K, D)
        context_embeds = tokens[:, : self.config.vision_config.num_context_tokens(num_frames)]  # (B, S, D)
        video_embeds = context_embeds[:, 0]  # (B, D)
        pseudo_query = None
        if is_hybrid:
            pseudo_query = self.generator(tokens)  # (B, D)
            video_embeds = self.interaction(pseudo_query.unsqueeze(1), context_embeds).squeeze(1)  # (B, D)
        return PigVideoFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=video_embeds,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            context_embeds=context_embeds,
            pseudo_query_embeds=pseudo_query,
            selected_patches=outputs.selected_patches,
            selection_scores=outputs.selection_scores,
        )


class PigTextModel(_TextFeaturesMixin, _LoadingMixin, CLIPTextModelWithProjection):
    """Encode queries into embeddings.

    `from_pretrained` also accepts a checkpoint of [`PigForRetrieval`], of which it loads the text tower only.

    Example:

    ```python
    >>> from modeling_pig import PigProcessor, PigTextModel

    >>> model = PigTextModel.from_pretrained("runs/demo/model")
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> text_embeds = model(**processor(text="a red circle moves left", return_tensors="pt")).text_embeds
    ```"""

    config: PigTextConfig
    config_class = PigTextConfig
    _keys_to_ignore_on_load_unexpected = [
        r"^vision_model\.",
        r"^visual_projection\.",
        r"^generator\.",
        r"^interaction\.",
        r"^logit_scale$",
    ]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPTextModelOutput:
        """Compute embeddings of queries, `text_embeds`, not normalised; see [`~PigTextModel.get_text_features`]."""
        features = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        return CLIPTextModelOutput(
            **{"text_embeds" if name == "pooler_output" else name: value for name, value in features.items()}
        )


class PigVideoModel(_VideoFeaturesMixin, PigPreTrainedModel):
    """Encode videos into the embeddings to index.

    `from_pretrained` also accepts a checkpoint of [`PigForRetrieval`], of which it loads the video modules only.

    Example:

    ```python
    >>> from modeling_pig import PigProcessor, PigVideoModel

    >>> model = PigVideoModel.from_pretrained("runs/demo/model")
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> video_embeds = model(**processor(videos="video.mp4", return_tensors="pt")).video_embeds
    ```"""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$"]

    def __init__(self, config: PigConfig):
        super().__init__(config)
        self._init_video_modules(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.vision_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigVideoModelOutput:
        """Compute embeddings of videos, not normalised; see [`~PigVideoModel.get_video_features`]."""
        features = self.get_video_features(pixel_values_videos, interpolate_pos_encoding, return_dict=True, **kwargs)
        return PigVideoModelOutput(
            **{"video_embeds" if name == "pooler_output" else name: value for name, value in features.items()}
        )


class PigForRetrieval(_TextFeaturesMixin, _VideoFeaturesMixin, PigPreTrainedModel):
    """Retrieve videos by text: both towers and the scale of their similarities.

    Index `get_video_features(...).pooler_output` of each video, and search with `get_text_features(...).pooler_output`
    of a query. Neither is normalised: `similarity` normalises both, or normalise them yourself and use the dot product
    as the score. With the `single_tower` framework, index the `context_embeds` of each video instead: its embedding
    depends on the query.

    Example:

    ```python
    >>> from modeling_pig import PigForRetrieval, PigProcessor

    >>> model = PigForRetrieval.from_pretrained("runs/demo/model").eval()
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> inputs = processor(text=["a red circle moves left"], videos=["a.mp4", "b.mp4"], return_tensors="pt")
    >>> with torch.inference_mode():
    ...     probabilities = model(**inputs).logits_per_text.softmax(dim=1)
    ```"""

    main_input_name = "input_ids"
    input_modalities = ("video", "text")
    _keep_in_fp32_modules_strict = ["logit_scale"]
    compute_losses = staticmethod(compute_losses)  # training may replace it

    def __init__(self, config: PigConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self._init_video_modules(config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value, dtype=torch.float32))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @classmethod
    def from_clip(cls, clip_name_or_folder: str, **pig_config) -> "PigForRetrieval":
        """Create a model from a CLIP or MetaCLIP 2 checkpoint. Every weight of the checkpoint is used.

        Both towers are those of CLIP. The generator's transformer and projection are copies of the text tower's, its
        bos and eos vectors copies of the embeddings of these tokens; the frame token is a copy of the class embedding.
        The global tokens are the class embedding plus noise that makes them differ, or random as in the paper with
        `global_token_init="random"`. Newly initialised are the temporal embedding (zero), the generator's input
        projection and the interaction. The configuration is marked as `untrained`.

        Args:
            clip_name_or_folder (`str`):
                Checkpoint in Hugging Face format, on the Hub or in a folder, with the `model_type` `clip` or
                `metaclip_2`.
            pig_config: fields of [`PigConfig`] or [`PigVisionConfig`], such as `num_frames=16`.

        Returns:
            [`PigForRetrieval`] in float32.

        Raises:
            ValueError: a field is unknown or invalid, or the checkpoint lacks weights, has them in pickle files only,
                or has another `model_type`.
            OSError: the checkpoint does not exist.

        Example:

        ```python
        >>> model = PigForRetrieval.from_clip("openai/clip-vit-base-patch32", num_frames=16, framework="two_tower")
        ```"""
        if "dtype" in pig_config:
            raise ValueError("from_clip creates a model in float32: save it, and load it with `dtype`.")
        clip_config = load_clip_config(clip_name_or_folder)
        config = PigConfig.from_clip_config(clip_config, **pig_config)
        clip, info = AutoModel.from_pretrained(
            clip_name_or_folder,
            config=clip_config,
            revision=safetensors_revision(clip_name_or_folder),
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := info["missing_keys"]:
            raise ValueError(
                f"{clip_name_or_folder} is not a complete CLIP checkpoint: it lacks {len(missing)} weights, such as "
                f"{min(missing)}. Download or save it again."
            )
        return cls.from_towers(config, clip.state_dict())

    @classmethod
    def from_towers(cls, config: PigConfig, towers: dict[str, torch.Tensor]) -> "PigForRetrieval":
        """Create a model from the weights of both towers; others start as in [`~PigForRetrieval.from_clip`].

        Args:
            config (`PigConfig`): configuration of the model, which is marked as `untrained` if weights are missing.
            towers (`dict[str, torch.Tensor]`): weights by their names in this model. Those of CLIP must be present.

        Returns:
            [`PigForRetrieval`] in float32.
        """
        model = cls(config)
        class_embedding = towers["vision_model.embeddings.class_embedding"]  # (C,)
        start = {}
        if model.config.vision_config.global_token_init == "class_embedding":
            noise = torch.randn_like(model.vision_model.embeddings.global_embedding)  # (G, C)
            noise *= GLOBAL_TOKEN_NOISE * class_embedding.std()
            start["vision_model.embeddings.global_embedding"] = class_embedding + noise
        start["vision_model.embeddings.frame_embedding"] = class_embedding
        if model.config.framework == "hybrid":
            start |= _generator_state_from_text_tower(model.generator, towers)
        expected = model.state_dict().keys()
        model.config.untrained = not expected <= towers.keys()
        start |= towers
        model.load_state_dict({name: value for name, value in start.items() if name in expected}, strict=False)
        return model

    def similarity(self, text_embeds: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
        """Compute the cosine of every query with every video. The embeddings need not be normalised.

        Args:
            text_embeds (`torch.Tensor` of shape `(Q, D)`): `get_text_features(...).pooler_output`.
            video_embeds (`torch.Tensor` of shape `(B, D)` or `(B, S, D)`):
                `get_video_features(...).pooler_output`, or `.context_embeds`. Context tokens are pooled separately
                for each query: the scores of `single_tower`, and those by which `hybrid` re-ranks. `two_tower` has no
                interaction to pool them.

        Returns:
            `torch.Tensor` of shape `(Q, B)`.

        Raises:
            ValueError: `video_embeds` has another shape than the framework allows.
        """
        allowed = {"two_tower": (2,), "single_tower": (3,), "hybrid": (2, 3)}[self.config.framework]
        if video_embeds.ndim not in allowed:
            raise ValueError(
                f"video_embeds has shape {tuple(video_embeds.shape)}; a {self.config.framework} model expects "
                f"{' or '.join({2: '(B, D)', 3: '(B, S, D)'}[ndim] for ndim in allowed)}."
            )
        text_embeds = nn.functional.normalize(text_embeds, dim=-1)
        if video_embeds.ndim == 2:
            return text_embeds @ nn.functional.normalize(video_embeds, dim=-1).t()
        pooled = self.interaction(text_embeds.unsqueeze(0), video_embeds)  # (B, Q, D)
        return torch.einsum("qd,bqd->qb", text_embeds, nn.functional.normalize(pooled, dim=-1))

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Clamp `logit_scale` to [0, config.logit_scale_max]. Call this after each step of the optimiser."""
        self.logit_scale.clamp_(0, self.config.logit_scale_max)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        output_selection: bool = False,
        interpolate_pos_encoding: bool = False,
        caption_ids: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        video_embeds: torch.FloatTensor | None = None,
        pseudo_query_embeds: torch.FloatTensor | None = None,
        context_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PigOutput:
        r"""Score every query against every video, and compute the losses with `return_loss=True`.

        Args:
            input_ids (`torch.LongTensor` of shape `(Q, tokens)` or `(B, M, tokens)`, *optional*):
                Token ids of the queries; in the second shape, M queries of each video, and Q = B * M.
            pixel_values_videos (`torch.FloatTensor` of shape `(B, T, 3, height, width)`, *optional*):
                Normalised frames; T may differ from `config.vision_config.num_frames`.
            attention_mask (`torch.Tensor` of the shape of `input_ids`, *optional*): 0 for padding, 1 for tokens.
            return_loss (`bool`, *optional*):
                Compute the losses; query i then belongs to video i, and Q = B. In training under `torch.distributed`
                the pairs of all processes, whose B may differ, are one batch: the losses on every process are those
                of the total batch, and gradients averaged over the processes (as in DDP and FSDP) are its gradients.
                With M queries of each video, the losses are the means over M batches with one query per video.
            output_selection (`bool`, *optional*, defaults to `False`): also return the selected patches and scores.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Accept frames of another size than `config.vision_config.image_size`.
            caption_ids (`torch.LongTensor` of shape `(B,)` or `(B, M)`, *optional*):
                Equal numbers mark identical captions, also on other processes. The loss does not use a pair of a
                query and a video with an identical caption as a negative. By default all other pairs are negatives.
            text_embeds (`torch.FloatTensor` of shape `(Q, D)` or `(B, M, D)`, *optional*):
                `text_embeds` of an earlier output, instead of `input_ids`.
            video_embeds (`torch.FloatTensor` of shape `(B, D)`, or `(B, S, D)` for `single_tower`, *optional*):
                `video_embeds` of an earlier output, instead of `pixel_values_videos`.
            pseudo_query_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*):
                `pseudo_query_embeds` of the same output as `video_embeds`; the loss of `hybrid` needs them.
            context_embeds (`torch.FloatTensor` of shape `(B, S, D)`, *optional*):
                `context_embeds` of the same output as `video_embeds`; the re-ranking loss needs them.

        Returns:
            [`PigOutput`].

        Raises:
            ValueError: inputs or embeddings are missing or both given; `return_loss` with other numbers of queries
                than videos, or with `video_embeds` of a `hybrid` model without `pseudo_query_embeds` or
                `context_embeds`.
        """
        is_hybrid = self.config.framework == "hybrid"
        learns_to_rerank = is_hybrid and self.config.reranking_loss_weight > 0
        if (input_ids is None) == (text_embeds is None):
            raise ValueError("Give either input_ids or text_embeds.")
        if (pixel_values_videos is None) == (video_embeds is None):
            raise ValueError("Give either pixel_values_videos or video_embeds.")
        if return_loss and is_hybrid and video_embeds is not None and pseudo_query_embeds is None:
            raise ValueError("return_loss needs pseudo_query_embeds with the video_embeds of a hybrid model.")
        if return_loss and learns_to_rerank and video_embeds is not None and context_embeds is None:
            raise ValueError("return_loss needs context_embeds with video_embeds, for the re-ranking loss.")

        video_features = text_features = None
        if video_embeds is None:
            video_features = self.get_video_features(
                pixel_values_videos, interpolate_pos_encoding, return_dict=True, **kwargs
            )
            if self.config.framework == "single_tower":
                video_embeds = video_features.context_embeds  # (B, S, D)
            else:
                video_embeds = nn.functional.normalize(video_features.pooler_output, dim=-1)  # (B, D)
            if is_hybrid:
                pseudo_query_embeds = nn.functional.normalize(video_features.pseudo_query_embeds, dim=-1)  # (B, D)
            if learns_to_rerank:
                context_embeds = video_features.context_embeds  # (B, S, D)
        if text_embeds is None:
            captions_per_video = input_ids.shape[1] if input_ids.ndim == 3 else None  # M
            if captions_per_video:
                input_ids = input_ids.flatten(0, 1)  # (B * M, tokens)
                attention_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
            text_features = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
            text_embeds = nn.functional.normalize(text_features.pooler_output, dim=-1)  # (Q, D)
            if captions_per_video:
                text_embeds = text_embeds.unflatten(0, (-1, captions_per_video))  # (B, M, D)

        logit_scale = self.logit_scale.exp()
        queries = text_embeds.flatten(0, -2)  # (Q, D)
        logits_per_text = compute_logits(self.similarity, logit_scale, queries, video_embeds)  # (Q, B)

        losses = PigLosses()
        if return_loss:
            compute = partial(
                self.compute_losses,
                similarity=self.similarity,
                logit_scale=logit_scale,
                video_embeds=video_embeds,
                pseudo_query_embeds=pseudo_query_embeds if is_hybrid else None,
                reconstruction_loss_weight=self.config.reconstruction_loss_weight,
                over_processes=self.training,
                context_embeds=context_embeds if learns_to_rerank else None,
                reranking_loss_weight=self.config.reranking_loss_weight,
            )
            if text_embeds.ndim == 2:
                losses = compute(logits_per_text=logits_per_text, text_embeds=text_embeds, caption_ids=caption_ids)
            else:
                logits = logits_per_text.unflatten(0, text_embeds.shape[:2])  # (B, M, B)
                losses = mean_losses(
                    compute(
                        logits_per_text=logits[:, index],
                        text_embeds=text_embeds[:, index],
                        caption_ids=None if caption_ids is None else caption_ids[:, index],
                    )
                    for index in range(text_embeds.shape[1])
                )

        with_selection = output_selection and video_features is not None
        return PigOutput(
            loss=losses.loss,
            retrieval_loss=losses.retrieval_loss,
            reconstruction_loss=losses.reconstruction_loss,
            reranking_loss=losses.reranking_loss,
            logits_per_text=logits_per_text,
            logits_per_video=logits_per_text.t(),
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            pseudo_query_embeds=pseudo_query_embeds,
            context_embeds=context_embeds,
            selected_patches=video_features.selected_patches if with_selection else None,
            selection_scores=video_features.selection_scores if with_selection else None,
            text_model_output=text_features,
            vision_model_output=video_features,
        )


def _generator_state_from_text_tower(
    generator: PigPseudoQueryGenerator, towers: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the text tower's weights under the generator's names in [`PigForRetrieval`]."""
    config = generator.config
    token_embedding = towers["text_model.embeddings.token_embedding.weight"]
    text_positions = towers["text_model.embeddings.position_embedding.weight"]
    positions = generator.position_embedding.weight.detach().clone()
    copied = min(len(positions), len(text_positions))
    positions[:copied] = text_positions[:copied]
    state = {
        "generator.bos_embedding": token_embedding[config.bos_token_id],
        "generator.eos_embedding": token_embedding[config.eos_token_id],
        "generator.position_embedding.weight": positions,
        "generator.text_projection.weight": towers["text_projection.weight"],
    }
    for name, value in towers.items():
        if name.startswith(("text_model.encoder.layers.", "text_model.final_layer_norm.")):
            state["generator." + name.removeprefix("text_model.").removeprefix("encoder.")] = value
    return state


__all__ = [
    "PigForRetrieval",
    "PigPatchSelector",
    "PigPreTrainedModel",
    "PigTextModel",
    "PigVideoModel",
    "PigVisionTransformer",
]
