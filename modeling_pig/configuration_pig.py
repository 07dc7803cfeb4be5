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
"""PIG configuration: every number of the architecture (the Hybrid-Tower paper, arXiv 2509.04773)."""

import math
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig


@strict
class PigTextConfig(CLIPTextConfig):
    """The text tower: a CLIP text model, unchanged. All fields are those of [`~transformers.CLIPTextConfig`]."""

    model_type = "pig_text_model"


@strict
class PigVisionConfig(CLIPVisionConfig):
    """The video tower: a CLIP vision model that reads several frames, with video proxy tokens (CLIP-ViP).

    Adds to the fields of [`~transformers.CLIPVisionConfig`]:

    num_frames (`int`, defaults to 12):
        Frames of a clip, T. It sets the length of the learned temporal embedding; clips of another length are read
        with that embedding interpolated.
    num_global_tokens (`int`, defaults to 3):
        Learned tokens of the whole video beside the class token, G. They attend to every frame.
    use_frame_tokens (`bool`, defaults to `True`):
        Whether each frame carries one learned token that summarises it. With one frame, no global token and no
        frame token the tower is plain CLIP.
    """

    model_type = "pig_vision_model"

    num_frames: int = 12
    num_global_tokens: int = 3
    use_frame_tokens: bool = True

    def validate_architecture(self):
        super().validate_architecture()
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}; a clip has at least 1 frame.")
        if self.num_global_tokens < 0:
            raise ValueError(f"num_global_tokens is {self.num_global_tokens}; expected 0 or more.")

    @property
    def num_patches(self) -> int:
        """Patches of one frame (49 for 224 pixels and patches of 32)."""
        return (self.image_size // self.patch_size) ** 2

    def num_context_tokens(self, num_frames: int) -> int:
        """Tokens that are not patches, 1 + G + T: class, globals and one a frame. The interaction reads these."""
        return 1 + self.num_global_tokens + (num_frames if self.use_frame_tokens else 0)


@strict
class PigConfig(PreTrainedConfig):
    """Configuration of [`PigForRetrieval`] and [`PigVideoModel`]. The defaults are those of the paper for ViT-B/32.

    Args:
        text_config (`PigTextConfig` or `dict`, *optional*):
            The text tower. The generator has the same width, heads and MLP.
        vision_config (`PigVisionConfig` or `dict`, *optional*):
            The video tower.
        framework (`str`, defaults to `"hybrid"`):
            `"hybrid"`: the video interacts with a pseudo-query generated from itself; one vector a video.
            `"two_tower"`: the video's embedding is its class token; one vector a video.
            `"single_tower"`: the video's tokens interact with each real query; 1 + G + T vectors a video.
        projection_dim (`int`, defaults to 512):
            Width of the joint space, D.
        num_selected_patches (`int`, defaults to 16):
            Informative patches that the selector hands to the generator, k, over the whole clip. A clip with fewer
            gives all that it has, with a warning.
        selector_head_reduction (`str`, defaults to `"max"`):
            How the class token's attention is reduced over the heads: `"max"` or `"mean"`.
        generator_num_hidden_layers (`int`, *optional*):
            Depth of the generator; the text tower's when not given.
        generator_max_position_embeddings (`int`, defaults to 77):
            Longest sequence of the generator: bos + class + G + T + k + eos.
        generator_use_projection (`bool`, defaults to `True`):
            Whether the generator ends in its own copy of the text projection (the authors' first release). Without
            it (their second release) the text width must equal `projection_dim`.
        generator_learnable_ends (`bool`, defaults to `True`):
            Whether the generator's bos and eos vectors are trained (first release) or constant (second release).
        generator_use_bos (`bool`, defaults to `True`):
            Whether the generator's sequence starts with a bos vector.
        interaction_num_attention_heads (`int`, defaults to 1):
            Heads of the interaction's cross-attention.
        interaction_dropout (`float`, defaults to 0.1):
            Dropout after the interaction's linear layer.
        reconstruction_loss_weight (`float`, defaults to 1.0):
            Weight of the loss that pulls the pseudo-query towards the real one.
        logit_scale_init_value (`float`, defaults to 4.60):
            Logarithm of the factor on the cosines, at the start.
        logit_scale_max (`float`, defaults to ln 200):
            Upper limit to which [`PigForRetrieval.clamp_logit_scale_`] holds it; the lower one is 0.
        initializer_factor (`float`, defaults to 1.0):
            Factor on the spread of every random start, as in CLIP.

    Example:

    ```python
    >>> from modeling_pig import PigConfig, PigForRetrieval

    >>> config = PigConfig(num_selected_patches=8, vision_config={"num_frames": 6})
    >>> model = PigForRetrieval(config)
    ```
    """

    model_type = "pig"
    sub_configs_defaults = {"text_config": PigTextConfig, "vision_config": PigVisionConfig}

    text_config: dict | PigTextConfig | None = None
    vision_config: dict | PigVisionConfig | None = None
    framework: Literal["hybrid", "two_tower", "single_tower"] = "hybrid"
    projection_dim: int = 512
    num_selected_patches: int = 16
    selector_head_reduction: Literal["max", "mean"] = "max"
    generator_num_hidden_layers: int | None = None
    generator_max_position_embeddings: int = 77
    generator_use_projection: bool = True
    generator_learnable_ends: bool = True
    generator_use_bos: bool = True
    interaction_num_attention_heads: int = 1
    interaction_dropout: float = 0.1
    reconstruction_loss_weight: float = 1.0
    logit_scale_init_value: float | int = 4.60
    logit_scale_max: float | int = math.log(200)
    initializer_factor: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # Each half is loaded from its own sub-config, and needs the width of the joint space there.
        self.text_config.projection_dim = self.projection_dim
        self.vision_config.projection_dim = self.projection_dim
        if self.generator_num_hidden_layers is None:
            self.generator_num_hidden_layers = self.text_config.num_hidden_layers

    def validate_architecture(self):
        if self.projection_dim % self.interaction_num_attention_heads != 0:
            raise ValueError(
                f"projection_dim ({self.projection_dim}) is not a multiple of interaction_num_attention_heads "
                f"({self.interaction_num_attention_heads})."
            )
        if self.framework != "hybrid":
            return
        if self.num_selected_patches < 0:
            raise ValueError(f"num_selected_patches is {self.num_selected_patches}; expected 0 or more.")
        if not self.generator_use_projection and self.text_config.hidden_size != self.projection_dim:
            raise ValueError(
                "Without generator_use_projection the pseudo-query has the text tower's width "
                f"({self.text_config.hidden_size}), which must equal projection_dim ({self.projection_dim})."
            )
        self.check_generator_length(self.vision_config.num_frames)

    def generator_length(self, num_frames: int) -> int:
        """Length of the generator's sequence for clips of `num_frames` frames (34 with the defaults)."""
        num_context_tokens = self.vision_config.num_context_tokens(num_frames)
        return int(self.generator_use_bos) + num_context_tokens + self.num_selected_patches + 1

    def check_generator_length(self, num_frames: int) -> None:
        """Raises `ValueError` if the generator has too few positions for clips of `num_frames` frames."""
        length = self.generator_length(num_frames)
        if length > self.generator_max_position_embeddings:
            longest = num_frames - (length - self.generator_max_position_embeddings)
            raise ValueError(
                f"A clip of {num_frames} frames makes a generator sequence of {length} positions, more than "
                f"generator_max_position_embeddings ({self.generator_max_position_embeddings}): use "
                + (f"at most {longest} frames, " if longest > 0 else "")
                + "a smaller num_selected_patches or a longer generator."
            )

    @classmethod
    def from_clip_config(cls, clip_config: CLIPConfig, **kwargs) -> "PigConfig":
        """The configuration of a PIG model that starts from a CLIP checkpoint.

        Args:
            clip_config (`CLIPConfig`): the checkpoint's own.
            kwargs: fields of [`PigConfig`], or of [`PigVisionConfig`] that CLIP lacks (`num_frames`,
                `num_global_tokens`, `use_frame_tokens`).

        Raises:
            ValueError: an unknown or impossible field.
        """
        text_config = _architecture(clip_config.text_config, CLIPTextConfig)
        if text_config["eos_token_id"] == 2:
            # Early CLIP checkpoints carry these wrong ids; their tokenizers use the two last rows of the vocabulary.
            last = text_config["vocab_size"] - 1
            text_config |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
        new_vision_fields = {f.name for f in fields(PigVisionConfig)} - {f.name for f in fields(CLIPVisionConfig)}
        vision_config = _architecture(clip_config.vision_config, CLIPVisionConfig)
        vision_config |= {name: kwargs.pop(name) for name in new_vision_fields & kwargs.keys()}
        unknown = kwargs.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"PigConfig has no field {', '.join(sorted(unknown))}.")
        width = clip_config.projection_dim
        if kwargs.setdefault("projection_dim", width) != width:
            raise ValueError(f"projection_dim is {kwargs['projection_dim']}; it must be CLIP's own, {width}.")
        kwargs.setdefault("initializer_factor", clip_config.initializer_factor)
        return cls.from_fields(text_config=text_config, vision_config=vision_config, **kwargs)

    @classmethod
    def from_fields(cls, **kwargs: Any) -> "PigConfig":
        """`PigConfig(**kwargs)` for fields that a user wrote: what cannot be is a `ValueError` of one line."""
        try:
            return cls(**kwargs)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error


def _architecture(config: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> dict:
    """The fields of `config` that `config_class` declares beyond those of every configuration."""
    names = {f.name for f in fields(config_class)} - {f.name for f in fields(PreTrainedConfig)}
    return {name: value for name, value in config.to_dict().items() if name in names}


__all__ = ["PigConfig", "PigTextConfig", "PigVisionConfig"]
