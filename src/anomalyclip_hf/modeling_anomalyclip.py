"""AnomalyCLIP: a frozen CLIP with two learned, object-agnostic prompts and a refined attention path (DPAM)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPVisionEmbeddings,
    eager_attention_forward,
)
from transformers.utils import ModelOutput

from .configuration_anomalyclip import AnomalyCLIPConfig
from .cpu_anomalyclip import attend_in_blocks, run_widened, split_on_cpu, use_cpu_linear, wants_blocks, widen
from .hub_anomalyclip import AnomalyCLIPHubMixin
from .loss_anomalyclip import check_targets, fill_masks_of_normal_images, global_anomaly_loss, local_anomaly_loss


@dataclass
class AnomalyCLIPOutput(ModelOutput):
    """What [`AnomalyCLIPModel`] answers. B images, M feature layers, N patches, P = `projection_dim`; all float32.

    Args:
        loss (`Tensor` of shape `()`, with labels or masks): sum of the two losses below.
        global_loss (`Tensor` of shape `()`, with labels): cross entropy of the logits.
        local_loss (`Tensor` of shape `()`, with masks): 4 x (focal + both dice losses), summed over layers.
        logits (`Tensor` of shape `(B, 2)`): similarities divided by the temperature; [0] normal, [1] anomalous.
        similarity_maps (`Tensor` of shape `(B, M, 2, H, W)`, in [0, 1]): per layer, before smoothing.
        anomaly_maps (`Tensor` of shape `(B, H, W)`, in [0, 1]): P(anomalous), mean over layers.
        image_embeds (`Tensor` of shape `(B, P)`): L2-normalised.
        text_embeds (`Tensor` of shape `(2, P)`): L2-normalised; normal, anomalous.
        patch_embeds (`Tensor` of shape `(B, M, N, P)`): L2-normalised.
    """

    loss: Tensor | None = None
    global_loss: Tensor | None = None
    local_loss: Tensor | None = None
    logits: Tensor | None = None
    similarity_maps: Tensor | None = None
    anomaly_maps: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    patch_embeds: Tensor | None = None


def compute_similarity_maps(
    patch_embeds: Tensor, text_embeds: Tensor, temperature: float, grid_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Similarity maps of patches to the two prompts (section 3.1 of the paper).

    Args:
        patch_embeds (`Tensor` of shape `(B, M, N, P)`, float32): L2-normalised, patches row by row.
        text_embeds (`Tensor` of shape `(2, P)`, float32): L2-normalised.
        temperature (`float`, above 0).
        grid_size (`tuple[int, int]`): rows and columns of the patch grid, N = rows x columns.
        size (`tuple[int, int]`): height and width of the maps in pixels.

    Returns:
        `Tensor` of shape `(B, M, 2, H, W)`, float32, in [0, 1]: softmax per patch, resized bilinearly.
    """
    batch, layers, patches, _ = patch_embeds.shape
    if grid_size[0] * grid_size[1] != patches:
        raise ValueError(f"patch_embeds has {patches} patches but grid_size={tuple(grid_size)} asks for their product")
    similarity = (patch_embeds @ text_embeds.T / temperature).softmax(dim=-1)
    maps = similarity.transpose(-1, -2).reshape(batch * layers, 2, *grid_size)
    maps = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps.view(batch, layers, 2, *size)


class AnomalyCLIPAttention(CLIPAttention):
    """CLIP's attention with a refined path beside it: DPAM (section 3.3). One q/k/v projection serves both."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        refine: str | None = None,
        class_token_only: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend along the original path and, if asked, along the refined one.

        Args:
            hidden_states (`Tensor` of shape `(B, 1 + N, d)`): layer-normed states of the original path.
            refine (`str`, *optional*): `"vv"`, `"qq"` or `"kk"`; None = no refined path.
            class_token_only (`bool`): answer the original path for the class token alone.

        Returns:
            original `(B, 1 + N, d)` or `(B, 1, d)`, and refined `(B, N, d)` (patches only) or None.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        keys = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        values = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        queried = hidden_states[:, :1] if class_token_only and refine != "qq" else hidden_states
        queries = self.q_proj(queried).view(*queried.shape[:-1], -1, self.head_dim).transpose(1, 2)

        original = self._attend(queries[:, :, :1] if class_token_only else queries, keys, values, **kwargs)
        if refine is None:
            return original, None
        tokens = {"vv": values, "qq": queries, "kk": keys}[refine]
        # The refined class token feeds nothing: patches alone ask, all tokens answer.
        return original, self._attend(tokens[:, :, 1:], tokens, values, **kwargs)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, **kwargs) -> Tensor:
        if self.config._attn_implementation == "sdpa" and wants_blocks(queries):
            output = attend_in_blocks(queries, keys, values, self.scale)
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            output, _ = attend(self, queries, keys, values, None, scaling=self.scale, dropout=0.0, **kwargs)
        return self.out_proj(output.reshape(output.shape[0], queries.shape[2], -1))


class AnomalyCLIPVisionLayer(CLIPEncoderLayer):
    """A vision layer that carries the original path and, in the last `dpam_layers`, the refined one."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.self_attn = AnomalyCLIPAttention(config)
        use_cpu_linear(self)

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, refined: Tensor | None, refine: str | None, class_token_only: bool, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        original_out, refined_out = self.self_attn(
            self.layer_norm1(hidden_states), refine=refine, class_token_only=class_token_only, **kwargs
        )
        if refined_out is not None:
            refined = (hidden_states[:, 1:] if refined is None else refined) + refined_out
        hidden_states = (hidden_states[:, :1] if class_token_only else hidden_states) + original_out
        return hidden_states + self.mlp(self.layer_norm2(hidden_states)), refined


class AnomalyCLIPVisionEncoder(nn.Module):
    """The stack of vision layers, under CLIP's own names."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList([AnomalyCLIPVisionLayer(config) for _ in range(config.num_hidden_layers)])


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions `(1 + S * S, D)`, float, of a square image as `(1 + h * w, D)` of `grid=(h, w)`, bilinearly."""
    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    native = positions[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(native, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized.flatten(2)[0].T.to(positions.dtype)])


class AnomalyCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings of patches, with positions resized bilinearly to other image sizes."""

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = True) -> Tensor:
        weight = self.patch_embedding.weight
        patches = self.patch_embedding(pixel_values.to(weight.dtype))
        grid = patches.shape[-2:]
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches.flatten(2).mT], dim=1)
        # Called, not read: offloaded weights are there only while their own module runs.
        positions = self.position_embedding(self.position_ids)[0]
        return tokens + resize_positions(positions, (grid[0], grid[1]))


class AnomalyCLIPVisionModel(CLIPPreTrainedModel):
    """Vision tower that answers the class token of the original path and patch features of chosen layers."""

    config: CLIPVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.embeddings = AnomalyCLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = AnomalyCLIPVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, feature_layers: list[int], dpam_layers: int, dpam_attention: str = "vv", **kwargs
    ) -> tuple[Tensor, list[Tensor]]:
        """Run both paths.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised; H and W multiples of the patch size.
            feature_layers (`list[int]`): layers, counted from 1, whose patch features are wanted, rising.
            dpam_layers (`int`): the last n layers carry the refined path.
            dpam_attention (`str`): `"vv"`, `"qq"` or `"kk"`.

        Returns:
            class token after the last layer, without post_layernorm `(B, d)`; a list of patch features `(B, N, d)`
            after post_layernorm.
        """
        tokens = run_widened(self.embeddings, pixel_values)
        groups = split_on_cpu(tokens, self.config.intermediate_size)
        parts = [self.encode(group, feature_layers, dpam_layers, dpam_attention, **kwargs) for group in groups]
        class_tokens, features = zip(*parts, strict=True)
        return torch.cat(class_tokens), [torch.cat(layer) for layer in zip(*features, strict=True)]

    def encode(
        self, tokens: Tensor, feature_layers: list[int], dpam_layers: int, dpam_attention: str = "vv", **kwargs
    ) -> tuple[Tensor, list[Tensor]]:
        """Run both paths on embedded tokens `(B, 1 + N, d)`, the class token first; otherwise as `forward`."""
        depth = len(self.encoder.layers)
        hidden_states = run_widened(self.pre_layrnorm, tokens)
        refined, features = None, []
        for number, layer in enumerate(self.encoder.layers, start=1):
            in_dpam = number > depth - dpam_layers
            # Past the last feature layer nothing reads the refined path; in the last layer nothing but the class
            # token of the original path is read, unless its patches are a feature.
            refine = dpam_attention if in_dpam and number <= feature_layers[-1] else None
            class_token_only = number == depth and (in_dpam or feature_layers[-1] != depth)
            hidden_states, refined = run_widened(layer, hidden_states, refined, refine, class_token_only, **kwargs)
            if number in feature_layers:
                features.append(run_widened(self.post_layernorm, refined if refine else hidden_states[:, 1:]))
        return hidden_states[:, 0], features


class AnomalyCLIPTextModel(CLIPTextModel):
    """CLIP's text tower, fed with embeddings and with deep prompts that overwrite hidden states."""

    def forward(  # type: ignore[override]
        self, inputs_embeds: Tensor, deep_prompts: Tensor, eos_positions: list[int], **kwargs
    ) -> Tensor:
        """Encode embedded prompts.

        Args:
            inputs_embeds (`Tensor` of shape `(2, L, d)`): embedded tokens, positions not yet added.
            deep_prompts (`Tensor` of shape `(depth - 1, T, d)`): set i overwrites positions 1..T before layer i + 2.
            eos_positions (`list[int]`): index of the end-of-text token in each row.

        Returns:
            `Tensor` of shape `(2, d)`: state at the end-of-text token after the final layer norm.
        """
        # 1. Positions and the causal mask; what follows the end of text can't be seen from it.
        hidden_states = self.embeddings(inputs_embeds=inputs_embeds)
        mask = create_causal_mask(self.config, hidden_states, None, None)  # no attention mask, no cache
        # 2. Layers, with deep prompts written over positions 1..T before layers 2..depth.
        for index, layer in enumerate(self.encoder.layers):
            if 1 <= index <= len(deep_prompts):
                prompts = deep_prompts[index - 1].to(hidden_states).expand(len(hidden_states), -1, -1)
                after = hidden_states[:, 1 + prompts.shape[1] :]
                hidden_states = torch.cat([hidden_states[:, :1], prompts, after], dim=1)
            hidden_states = run_widened(layer, hidden_states, mask, is_causal=True, **kwargs)
        # 3. The state at the end of text.
        rows = [hidden_states[row, position] for row, position in enumerate(eos_positions)]
        return run_widened(self.final_layer_norm, torch.stack(rows))


class AnomalyCLIPPromptLearner(nn.Module):
    """The learned words of both prompts and the deep prompts: all that is trained, float32 always (section 3.2).

    Args:
        config ([`AnomalyCLIPConfig`]): gives `prompt_length`, `deep_prompt_depth` and `deep_prompt_length`.
    """

    def __init__(self, config: AnomalyCLIPConfig):
        super().__init__()
        width = config.text_config.hidden_size
        sets = (config.deep_prompt_depth or 1) - 1
        self.context = nn.Parameter(torch.empty(2, config.prompt_length, width, dtype=torch.float32))
        self.deep_prompts = nn.Parameter(torch.empty(sets, config.deep_prompt_length, width, dtype=torch.float32))

    def _apply(self, fn, recurse=True):
        """Follow moves to other devices, but stay float32 when the backbone is cast."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            same = moved.dtype == tensor.dtype or not moved.is_floating_point()
            return moved if same else tensor.to(device=moved.device, dtype=torch.float32)

        return super()._apply(keep_float32, recurse)

    def forward(self, token_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Replace positions 1..E of the embedded prompts `(2, L, d)` by the learned words.

        Returns:
            the embedded prompts `(2, L, d)` and the deep prompts `(depth - 1, T, d)`.
        """
        context = self.context.to(token_embeds)
        embeds = torch.cat([token_embeds[:, :1], context, token_embeds[:, 1 + context.shape[1] :]], dim=1)
        return embeds, self.deep_prompts


class AnomalyCLIPPreTrainedModel(AnomalyCLIPHubMixin, PreTrainedModel):
    config: AnomalyCLIPConfig
    config_class = AnomalyCLIPConfig
    base_model_prefix = "anomalyclip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["AnomalyCLIPVisionLayer", "CLIPEncoderLayer", "AnomalyCLIPVisionEmbeddings"]
    _keep_in_fp32_modules_strict = ["prompt_learner", "folded_text_embeds"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, AnomalyCLIPPromptLearner):
            init.normal_(module.context, std=0.02)
            init.normal_(module.deep_prompts, std=0.02)
        elif isinstance(module, AnomalyCLIPModel):
            factor = self.config.initializer_factor
            for name, tower in (("visual_projection", "vision_config"), ("text_projection", "text_config")):
                if (projection := getattr(module, name, None)) is not None:
                    init.normal_(projection.weight, std=getattr(self.config, tower).hidden_size ** -0.5 * factor)
            if self.config.vision_only:
                init.zeros_(module.folded_text_embeds)


class AnomalyCLIPModel(AnomalyCLIPPreTrainedModel):
    """Zero-shot anomaly detection with two learned, object-agnostic prompts on a frozen CLIP.

    Args:
        config ([`AnomalyCLIPConfig`]).

    The backbone's parameters carry `CLIPModel`'s names and are frozen; `prompt_learner.context` (2, E, d) and
    `prompt_learner.deep_prompts` (depth - 1, T, d) are learned.
    """

    def __init__(self, config: AnomalyCLIPConfig):
        super().__init__(config)
        if config.prompts_only:
            raise ValueError("this configuration is that of prompts alone; from_pretrained loads their base model too")
        text, vision = config.text_config, config.vision_config
        self.vision_model = AnomalyCLIPVisionModel._from_config(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        if config.vision_only:
            self.folded_text_embeds = nn.Buffer(torch.zeros(2, config.projection_dim, dtype=torch.float32))
        else:
            self.text_model = AnomalyCLIPTextModel._from_config(text)
            self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
            self.prompt_learner = AnomalyCLIPPromptLearner(config)
        self._text_cache: tuple | None = None
        self.post_init()
        self.freeze_backbone()

    def _apply(self, fn, recurse=True):
        """Keep folded prompts in float32, as learned ones are, when the backbone is cast."""
        folded = self.folded_text_embeds if self.config.vision_only else None
        super()._apply(fn, recurse)
        if folded is not None and self.folded_text_embeds.dtype != folded.dtype:
            self.folded_text_embeds = folded.to(self.folded_text_embeds.device)  # type: ignore[assignment]
        return self

    def freeze_backbone(self) -> None:
        """Let gradients reach the prompts alone."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("prompt_learner."))

    def get_text_features(self) -> Tensor:
        """Embeddings of the normal and the anomalous prompt, kept between calls while no gradient is asked for.

        What is returned is the caller's own; changing it changes no later call. Code under `torch.compile` keeps
        nothing: give it `text_embeds`, made once outside.

        Returns:
            `Tensor` of shape `(2, P)`, float32, L2-normalised.
        """
        if self.config.vision_only:
            return self.folded_text_embeds.to(torch.float32, copy=True)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.encode_prompts()
        learner, weights = self.prompt_learner, (*self.text_model.parameters(), self.text_projection.weight)
        if any(weight.is_meta for weight in (*learner.parameters(), *weights)):
            return self.encode_prompts()  # offloaded: whether they changed can't be seen
        autocast = torch.is_autocast_enabled(weights[0].device.type)
        versions = ((w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights)
        key = (str(self.config.prompt_token_ids), autocast, *versions)
        if self._text_cache is not None:
            old_key, context, deep_prompts, embeds = self._text_cache
            # Values, not versions: p.data may be written without a trace.
            same = old_key == key and torch.equal(context, learner.context)
            if same and torch.equal(deep_prompts, learner.deep_prompts):
                return embeds.clone()
        embeds = self.encode_prompts()
        self._text_cache = (key, learner.context.clone(), learner.deep_prompts.clone(), embeds)
        return embeds.clone()

    def encode_prompts(self, deep_prompts: Tensor | None = None) -> Tensor:
        """Run the text tower on both prompts.

        Args:
            deep_prompts (`Tensor` of shape `(S, T, d)`, float32, S < depth, *optional*): instead of the learned ones.

        Returns:
            `Tensor` of shape `(2, P)`, float32, L2-normalised.
        """
        positions, table = self.config.eos_positions, self.text_model.embeddings.token_embedding
        device = "cpu" if table.weight.is_meta else table.weight.device  # offloaded: its own hook moves what it gets
        ids = torch.tensor(self.config.prompt_token_ids, device=device)[:, : max(positions) + 1]
        embeds, learned = self.prompt_learner(widen(table(ids)))
        pooled = self.text_model(embeds, learned if deep_prompts is None else deep_prompts, positions)
        return self.project(self.text_projection, pooled)

    def project(self, projection: nn.Linear, states: Tensor) -> Tensor:
        """Turn states `(..., d)` into L2-normalised embeddings `(..., P)`, float32, by `text_projection` or
        `visual_projection`."""
        return nn.functional.normalize(run_widened(projection, states).float(), dim=-1)

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of images and of their patches; never builds a graph.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised; H and W multiples of the patch size.

        Returns:
            image_embeds `(B, P)` and patch_embeds `(B, M, N, P)`, float32, L2-normalised.
        """
        self._check_pixel_values(pixel_values)
        config = self.config
        class_token, features = self.vision_model(
            pixel_values, sorted(config.feature_layers), config.dpam_layers, config.dpam_attention
        )
        image_embeds = self.project(self.visual_projection, class_token)
        layers = [self.project(self.visual_projection, states) for states in features]
        return image_embeds, torch.stack(layers, dim=1)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        image_embeds: Tensor | None = None,
        patch_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> AnomalyCLIPOutput | tuple:
        """Score images and their pixels, with losses where labels or masks are given.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, H, W)`, float): normalised; H and W multiples of the patch size.
            labels (`Tensor` of shape `(B,)`, int, 0 or 1, *optional*): 1 = anomalous.
            masks (`Tensor` of shape `(B, H, W)`, float, 0 or 1, *optional*): 1 = anomalous; -1 throughout an image
                that has no mask: it takes no part in the local loss (a normal one is given an empty mask).
            image_embeds, patch_embeds (`Tensor` of shape `(B, P)` and `(B, M, N, P)`, *optional*): kept features
                of [`~AnomalyCLIPModel.get_image_features`] instead of pixel_values.
            text_embeds (`Tensor` of shape `(2, P)`, *optional*): kept text embeddings; the text tower isn't run.
            return_dict (`bool`, *optional*): False = a plain tuple; the configuration's `return_dict` if absent.

        Raises:
            ValueError: if shapes contradict each other, or a vision-only model is asked for a loss.
        """
        # 1. Frozen features of the images.
        if pixel_values is not None:
            size = (pixel_values.shape[-2], pixel_values.shape[-1])
            image_embeds, patch_embeds = self.get_image_features(pixel_values)
        elif image_embeds is None or patch_embeds is None:
            raise ValueError("give pixel_values, or both image_embeds and patch_embeds")
        else:
            side = self.config.image_size
            size = (masks.shape[-2], masks.shape[-1]) if masks is not None else (side, side)
        self._check_targets(len(image_embeds), size, labels, masks)

        # 2. Text embeddings of the two prompts.
        if text_embeds is None:
            text_embeds = self.get_text_features()

        # 3. Similarities, in float32 also under autocast.
        with torch.autocast(device_type=image_embeds.device.type, enabled=False):
            image_embeds, patch_embeds = image_embeds.float(), patch_embeds.float()
            text_embeds = text_embeds.to(image_embeds.device, torch.float32)
            labels = None if labels is None else labels.to(image_embeds.device)
            temperature, patch = self.config.temperature, self.config.vision_config.patch_size
            logits = image_embeds @ text_embeds.T / temperature
            grid = (size[0] // patch, size[1] // patch)
            maps = compute_similarity_maps(patch_embeds, text_embeds, temperature, grid, size)

            # 4. Losses.
            global_loss = local_loss = loss = None
            if labels is not None:
                loss = global_loss = global_anomaly_loss(logits, labels.long())
            if masks is not None:
                masks = fill_masks_of_normal_images(masks.to(maps.device, maps.dtype), labels)
                local_loss = local_anomaly_loss(maps, masks)
                loss = local_loss if loss is None else loss + local_loss

        output = AnomalyCLIPOutput(
            loss=loss,
            global_loss=global_loss,
            local_loss=local_loss,
            logits=logits,
            similarity_maps=maps,
            anomaly_maps=maps[:, :, 1].mean(dim=1),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            patch_embeds=patch_embeds,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict is not False else output.to_tuple()

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        patch, channels = self.config.vision_config.patch_size, self.config.vision_config.num_channels
        shape = tuple(pixel_values.shape)
        if pixel_values.ndim != 4 or shape[1] != channels:
            raise ValueError(f"pixel_values has shape {shape}, expected (B, {channels}, H, W)")
        if shape[2] % patch or shape[3] % patch or not shape[2] or not shape[3]:
            raise ValueError(
                f"pixel_values is {shape[2]}x{shape[3]} pixels but patch_size={patch} does not divide it; "
                f"resize to multiples of {patch} (the processor does so)"
            )

    def _check_targets(self, batch: int, size: tuple, labels: Tensor | None, masks: Tensor | None) -> None:
        if self.config.vision_only and (labels is not None or masks is not None):
            raise ValueError(
                "this model is vision-only: its prompts are folded and can't be trained; load the full one"
            )
        check_targets(batch, size, labels, masks)


__all__ = ["AnomalyCLIPModel", "AnomalyCLIPOutput", "AnomalyCLIPPreTrainedModel", "compute_similarity_maps"]
