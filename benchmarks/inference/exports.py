"""Measures the differences between the vectors of a model and those of its export, for each format and several models.

The weights are random, and large enough that a wrong activation or a wrong token changes the vectors visibly. Each
export is made and compared in a fresh process, as `emocap export` does. If a format cannot hold a model, the reason is
recorded.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.rounds import Skipped
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export.card import CardFacts
from emocap_pretrain.interop.export.exporting import export
from emocap_pretrain.interop.export.formats import ExportFormat
from emocap_pretrain.interop.export.probes import CAPTIONS
from emocap_pretrain.interop.export.registry import FORMATS
from emocap_pretrain.interop.export.verify import REPORTED
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.training.build import build_model

WHAT = "difference of an exported model"
_TEXT = {"vocabulary": 320, "lengths": {"global": 16, "local": 16, "summary": 24}}
_SCRATCH = {**_TEXT, "architecture": {"width": 64, "layers": 2, "heads": 2}}
_SMALL = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
_SIGLIP = {"family": "siglip", "width": 64, "layers": 2, "heads": 2, "activation": "gelu_tanh", "positions": 64}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "vit and CLIP text": {"image": {"name": "vit_tiny_patch16_224", "pixels": 224}, "text": _SCRATCH},
    "convnext and CLIP text": {"image": {"name": "convnext_atto", "pixels": 96}, "text": _SCRATCH},
    "CLIP": {
        "image": {
            "name": "vit_base_patch16_clip_224",
            "pixels": 48,
            "options": {**_SMALL, "act_layer": "quick_gelu"},
        },
        "text": _SCRATCH,
    },
    "SigLIP": {
        "embedding": 64,
        "project_images": False,
        "text_bias": True,
        "image": {
            "name": "vit_base_patch16_siglip_224",
            "pixels": 48,
            "options": {**_SMALL, "act_layer": "gelu_tanh"},
        },
        "text": {**_TEXT, "architecture": {**_SIGLIP, "norm_eps": 1e-6}, "pooling": "last"},
    },
}


def measure(about: Occasion) -> Iterator[Measurement]:
    """Yields the largest difference between a model and its export, for each model in each format."""
    for name, model in MODELS.items():
        restored = _restored(model)
        for kind in FORMATS.values():
            yield _measurement(name, restored, kind, about)


def _restored(model: Mapping[str, Any]) -> Restored:
    required = {"name": "export", "url": "unused", "steps": 1, "global_batch": 2, "data": {"url": "unused"}}
    config = Config.model_validate({**required, "model": {"embedding": 32, **model}, "objective": {"kind": "sigmoid"}})
    tokenizer = Tokenizer.trained_on(CAPTIONS, 300)
    torch.manual_seed(0)
    pair = build_model(config, tokenizer.vocabulary, weights=False).eval()
    for parameter in pair.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return Restored(config, pair, tokenizer, 0)


def _measurement(name: str, restored: Restored, kind: ExportFormat, about: Occasion) -> Measurement:
    readings: list[float] | Skipped
    found: Mapping[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            document = export(restored, kind, Path(folder, "export"), facts=CardFacts())
            found = document.differences or {}
            readings = [max(value for result, value in found.items() if result not in REPORTED)]
        except ConfigError as error:
            readings = Skipped(str(error))
    return measured(
        about,
        readings,
        what=WHAT,
        contender=kind.library,
        setting={"model": name, "format": kind.name},
        unit="largest absolute difference",
        more=dict(found) or None,
        versions=versions(("torch", "timm", *kind.modules.values())),
    )
