"""Writes small models with random weights in the formats of open_clip and transformers, for the tests of `model.from`.

`FAMILIES` has one function for each format. The function writes a model into a folder and returns a `Foreign`, which
computes the vectors of this model with the library that has written the model.
"""

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import emocap_torchvision
from emocap_pretrain.data.batch import Texts

emocap_torchvision.install()
import timm  # noqa: E402 - after emocap_torchvision
from open_clip.model import CLIP, CustomTextCLIP, resize_pos_embed  # noqa: E402

saved_for_hub = importlib.import_module("open_clip.push_to_hf_hub").save_for_hf
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipModel,
)

MEAN, STD = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)  # Not those of OpenAI, so that a test sees which ones are read.
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
TOKENS, POSITIONS, END = 100, 16, 99
# The grid has the odd side 3. The head width is 32, and the ratio of the MLP is not 4.
VISION = {"image_size": 24, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2, "mlp_ratio": 2.5}
TEXT = {"context_length": POSITIONS, "vocab_size": TOKENS, "width": 48, "heads": 2, "layers": 2, "mlp_ratio": 1.5}
HF_VISION = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 160,
}
HF_TEXT = {
    "vocab_size": TOKENS,
    "max_position_embeddings": POSITIONS,
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 72,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 0,
}


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Holds a model that another library has written, and functions that compute its vectors with that library.

    Attributes:
        path: The value of `model.from`.
        image: Computes the pooled vectors and the vectors of the patches from normalized images.
        text: Computes the vectors of token ids, which are padded with `pad` to all positions.
        statistics: Mean and standard deviation with which images are normalized.
        scale: The logarithm of the learned scale.
        bias: The learned bias; None if there is none.
        activation: The setting that the user must add for a file that does not contain the activation.
        pad: The id of the token with which texts are padded.
        at: Returns the same model for images of another size; None if the library cannot resize the embeddings.
        pixels: Side of the images of the model.
        positions: Number of tokens that the text tower reads.
    """

    path: Path
    image: Callable[[Tensor], tuple[Tensor, Tensor]]
    text: Callable[[Tensor], Tensor]
    scale: float
    bias: float | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = OPENAI
    activation: str | None = None
    pad: int = 0
    pixels: int = 24
    positions: int = POSITIONS
    at: Callable[[int], "Foreign"] | None = field(default=None, repr=False)

    def images(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pooled vectors and the vectors of the patches of 8-bit images."""
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in self.statistics)
        return self.image((values / 255 - mean) / std)

    def texts(self, texts: Texts) -> Tensor:
        ids = texts.ids.masked_fill(~texts.mask, self.pad)
        return self.text(torch.nn.functional.pad(ids, (0, self.positions - ids.shape[1]), value=self.pad))


def spread(model: Any, seed: int = 0) -> Any:
    """Draws random weights, large enough that a wrong activation or a wrong norm changes the vectors visibly."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in ("logit_scale", "logit_bias"):
            continue
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.15, generator=generator)
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.fill_(-8.5)
    return model.eval()


# open_clip


def _clip(config: dict[str, Any], *, pixels: int | None = None) -> Any:
    kind = CustomTextCLIP if config.get("custom_text") or "timm_model_name" in config["vision_cfg"] else CLIP
    known = {key: value for key, value in config.items() if key != "custom_text"}
    vision = {**known["vision_cfg"], **({"image_size": pixels} if pixels else {})}
    return spread(kind(**{**known, "vision_cfg": vision}))


def _of_open_clip(path: Path, config: dict[str, Any], model: Any, **facts: Any) -> Foreign:
    vision, is_timm = config["vision_cfg"], "timm_model_name" in config["vision_cfg"]

    def image(pixels: Tensor) -> tuple[Tensor, Tensor]:
        if is_timm:
            features = model.visual.trunk.forward_features(pixels)
            return model.encode_image(pixels), features.flatten(2).mT if features.ndim == 4 else features
        model.visual.output_tokens = True
        return model.visual(pixels)

    def at(pixels: int) -> Foreign:
        larger = _clip(config, pixels=pixels)
        state = dict(model.state_dict())
        resize_pos_embed(state, larger)
        larger.load_state_dict(state)
        return _of_open_clip(path, config, larger, **{**facts, "pixels": pixels})

    bias = getattr(model, "logit_bias", None)
    return Foreign(
        path=path,
        image=image,
        text=model.encode_text,
        scale=float(model.logit_scale.detach()),
        bias=None if bias is None else float(bias.detach()),
        at=None if is_timm else at,
        **{"pixels": vision["image_size"], **facts},
    )


def _config(**changes: Any) -> dict[str, Any]:
    """Returns a config of open_clip. Arguments `vision__KEY` and `text__KEY` change the sections of the two towers."""
    config: dict[str, Any] = {"embed_dim": 20, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[f"{section}_cfg"] if section else config)[name or key] = value
    return config


def _bare(folder: Path, *, quick_gelu: bool) -> Foreign:
    """Writes a checkpoint as open_clip's training does. It contains neither the activation nor the width of a head."""
    config = _config(quick_gelu=quick_gelu, vision__width=64, vision__head_width=64, text__width=64, text__heads=1)
    model = _clip(config)
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, folder / "epoch_3.pt")
    activation = "quick_gelu" if quick_gelu else "gelu"
    return _of_open_clip(folder / "epoch_3.pt", config, model, activation=activation)


def _openai(folder: Path, *, form: str) -> Foreign:
    """Writes a file as OpenAI does: in half precision, with QuickGELU, and with three sizes stored as tensors."""
    config = _config(quick_gelu=True, vision__head_width=64, text__width=64, text__heads=1)
    model = _clip(config).half()  # The numbers are those that the file can hold.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts: dict[str, Any] = {}
    path = folder / ("face.pth" if form == "face" else "ViT-T-8.pt")
    if form == "face":  # FaRL and FLIP
        torch.save({"epoch": 16, "state_dict": state}, path)
        facts["activation"] = "quick_gelu"
    elif form == "state":
        torch.save({**state, **{name: torch.tensor(size) for name, size in OPENAI_SIZES.items()}}, path)
    else:
        save_program(_clip(config).half(), path)
    return _of_open_clip(path, config, model.float(), **facts)


OPENAI_SIZES = {"input_resolution": 24, "context_length": POSITIONS, "vocab_size": TOKENS}


def save_program(model: Any, path: Path) -> None:
    """Writes a TorchScript archive, the form in which OpenAI has published its models."""
    for name, size in OPENAI_SIZES.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(size))
    kind = next(model.parameters()).dtype
    inputs = {
        "encode_image": torch.zeros(1, 3, 24, 24, dtype=kind),
        "encode_text": torch.zeros(1, POSITIONS, dtype=torch.int64),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace_module(model, inputs, check_trace=False), path)


def _long_clip(folder: Path) -> Foreign:
    """Writes a file of Long-CLIP, which has one table for the first 20 positions and another one for the later ones."""
    kept = 20
    config = _config(quick_gelu=True, vision__head_width=64, text__width=64, text__heads=1, text__context_length=30)
    model = _clip(config)
    state = dict(model.state_dict())
    table = state["positional_embedding"]
    # Long-CLIP computes with one part of each table, so the other parts are noise.
    state["positional_embedding"] = torch.cat([table[:kept], torch.randn_like(table[kept:])])
    state["positional_embedding_res"] = torch.cat([torch.randn_like(table[:kept]), table[kept:]])
    torch.save(state, folder / "longclip.pt")
    return _of_open_clip(folder / "longclip.pt", config, model, activation="quick_gelu", positions=30)


def _hub_folder(folder: Path, **changes: Any) -> Foreign:
    """Writes a folder as open_clip's push_to_hf_hub does, with weights, config, and mean and std of the images."""
    config = _config(**changes)
    model = _clip(config)
    model.visual.image_mean, model.visual.image_std = MEAN, STD
    tokenizer = SimpleNamespace(save_pretrained=lambda _: None)
    saved_for_hub(model, tokenizer=tokenizer, model_config=config, save_directory=str(folder), safe_serialization=True)
    return _of_open_clip(folder, config, model, statistics=(MEAN, STD))


_SIGLIP_VISION = {"timm_model_name": "vit_tiny_patch8_siglip_24", "timm_pool": "map", "timm_proj": "none"}
_SIGLIP_TEXT = {
    "text__no_causal_mask": True,
    "text__proj_bias": True,
    "text__pool_type": "last",
    "text__norm_kwargs": {"eps": 1e-6},
}
_CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 96}


def vit_tiny_patch8_siglip_24(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Builds a SigLIP tower that is small enough for tests. This function is registered in timm."""
    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5, "img_size": 24}
    return timm.create_model("vit_base_patch16_siglip_224", pretrained=pretrained, **(sizes | options))


__all__ = ["vit_tiny_patch8_siglip_24"]  # timm wants it of a module that registers a model.
if not timm.is_model("vit_tiny_patch8_siglip_24"):
    timm.models.register_model(vit_tiny_patch8_siglip_24)


# transformers


def _of_transformers(path: Path, model: Any, **facts: Any) -> Foreign:
    is_siglip = hasattr(model, "logit_bias")

    def image(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = model.vision_model(pixel_values=pixels)
        if is_siglip:
            return found.pooler_output, found.last_hidden_state
        patches = model.vision_model.post_layernorm(found.last_hidden_state[:, 1:])
        return model.visual_projection(found.pooler_output), patches

    def text(ids: Tensor) -> Tensor:
        found = model.get_text_features(input_ids=ids)
        return getattr(found, "pooler_output", found)

    def at(pixels: int) -> Foreign:
        config = type(model.config).from_dict(model.config.to_dict())
        config.vision_config.image_size = pixels
        larger = type(model)(config).eval()
        state, name = dict(model.state_dict()), "vision_model.embeddings.position_embedding.weight"
        # open_clip's function resizes the grid of a table with a class token.
        table = {
            "visual.positional_embedding": torch.cat([state[name][:1], state[name]] if is_siglip else [state[name]])
        }
        side = pixels // config.vision_config.patch_size
        resize_pos_embed(table, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
        state[name] = table["visual.positional_embedding"][1 if is_siglip else 0 :]
        state["vision_model.embeddings.position_ids"] = torch.arange(len(state[name]))[None]
        larger.load_state_dict(state, strict=False)
        return _of_transformers(path, larger, **{**facts, "pixels": pixels})

    return Foreign(
        path=path,
        image=image,
        text=text,
        at=at,
        scale=float(model.logit_scale.detach()),
        bias=float(model.logit_bias.detach()) if is_siglip else None,
        **facts,
    )


def clip_model(vision: Any = None, text: Any = None) -> Any:
    """Returns a CLIPModel with random weights. `vision` and `text` change the configs of the towers."""
    return spread(
        CLIPModel(
            CLIPConfig(
                vision_config={**HF_VISION, **(vision or {})},
                text_config={**HF_TEXT, **(text or {})},
                projection_dim=20,
            )
        )
    )


def _clip_model(folder: Path, *, form: str = "", vision: Any = None, text: Any = None) -> Foreign:
    model = clip_model(vision, text)
    if form == "sharded":
        model.save_pretrained(folder, max_shard_size="60KB")
    else:
        model.save_pretrained(folder)
    if form == "old":  # Releases before 4.31 wrote a pickle, with these two buffers.
        (folder / "model.safetensors").unlink()
        buffers = {
            "text_model.embeddings.position_ids": torch.arange(POSITIONS)[None],
            "vision_model.embeddings.position_ids": torch.arange(10)[None],
        }
        torch.save({**model.state_dict(), **buffers}, folder / "pytorch_model.bin")
    if form == "statistics":
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
        return _of_transformers(folder, model, statistics=(MEAN, STD))
    return _of_transformers(folder, model)


def _siglip_model(folder: Path, *, pad: int, pixels: int = 24) -> Foreign:
    config = SiglipConfig(
        vision_config={**HF_VISION, "image_size": pixels},
        text_config={**HF_TEXT, "projection_size": 64, "pad_token_id": pad},
    )
    model = spread(SiglipModel(config))
    model.save_pretrained(folder)
    return _of_transformers(folder, model, statistics=SIGLIP, pad=pad)


def _metaclip_2(folder: Path) -> Foreign:
    config = MetaClip2Config(vision_config=HF_VISION, text_config=HF_TEXT, projection_dim=20)
    model = spread(MetaClip2Model(config))
    model.save_pretrained(folder)
    return _of_transformers(folder, model)


FAMILIES: dict[str, Callable[[Path], Foreign]] = {
    "openai-program": partial(_openai, form="program"),
    "openai-state-dict": partial(_openai, form="state"),
    "farl": partial(_openai, form="face"),
    "long-clip": _long_clip,
    "open_clip-gelu-file": partial(_bare, quick_gelu=False),
    "open_clip-quick_gelu-file": partial(_bare, quick_gelu=True),
    "open_clip-folder": _hub_folder,
    "open_clip-quick_gelu-folder": partial(_hub_folder, quick_gelu=True),
    "open_clip-custom-text-folder": partial(_hub_folder, custom_text=True),
    "open_clip-end-token-and-bias": partial(
        _hub_folder, text__pool_type="eos", text__eos_id=END, init_logit_bias=-9.0, nonscalar_logit_scale=True
    ),
    "open_clip-siglip": partial(
        _hub_folder,
        embed_dim=64,
        init_logit_bias=-10.0,
        vision_cfg={**_SIGLIP_VISION, "image_size": 24},
        **_SIGLIP_TEXT,
    ),
    "open_clip-siglip2": partial(
        _hub_folder,
        embed_dim=64,
        init_logit_bias=-10.0,
        vision_cfg={**_SIGLIP_VISION, "image_size": 24},
        text__act_kwargs={"approximate": "tanh"},
        **_SIGLIP_TEXT,
    ),
    "open_clip-convnext": partial(_hub_folder, vision_cfg=_CONVNEXT),
    "clip": _clip_model,
    "clip-sharded": partial(_clip_model, form="sharded"),
    "clip-old-pickle": partial(_clip_model, form="old"),
    "clip-gelu-own-statistics": partial(
        _clip_model, form="statistics", vision={"hidden_act": "gelu"}, text={"hidden_act": "gelu"}
    ),
    "clip-old-end-token": partial(_clip_model, text={"eos_token_id": 2}),
    "metaclip-2": _metaclip_2,
    "siglip": partial(_siglip_model, pad=1),
    "siglip-cut-pixels": partial(_siglip_model, pad=7, pixels=26),
}
