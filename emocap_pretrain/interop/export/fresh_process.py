"""Loads an export with the library of its format, and compares its vectors with those that our model has computed.

This file is a script and not a module of the package: `verify.py` starts it in a process of its own, as
`python fresh_process.py FORMAT FOLDER PROBES.npz RESULT.json`. It imports nothing of this project, unless the format is
our own (`safetensors`).
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

Arrays = dict[str, Any]


def by_torch(folder: Path, probes: Arrays) -> Arrays:
    import torch

    images = torch.from_numpy(probes["images"].transpose(0, 3, 1, 2).copy())
    tokens = {name: torch.from_numpy(probes[name]) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        image = torch.export.load(folder / "image.pt2").module()
        text = torch.export.load(folder / "text.pt2").module()
        # One image and one text alone show that no batch size is built in.
        image(images=images[:1])
        text(**{name: each[:1, :3] for name, each in tokens.items()})
        return _outputs(image(images=images), text(**tokens))


def by_onnx(folder: Path, probes: Arrays) -> Arrays:
    import onnxruntime

    image, text = (
        onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("image", "text")
    )
    images = probes["images"].transpose(0, 3, 1, 2)
    tokens = {name: probes[name] for name in ("input_ids", "attention_mask")}
    image.run(None, {"images": images[:1]})
    text.run(None, {name: each[:1, :3] for name, each in tokens.items()})
    return _outputs(image.run(None, {"images": images}), text.run(None, tokens))


def _outputs(images: Any, texts: Any) -> Arrays:
    names = ("image", "patches", "text", "sentence", "scale", "local_scale", "bias")
    return {name: np.asarray(each) for name, each in zip(names, (*images, *texts), strict=True)}


def by_transformers(folder: Path, probes: Arrays) -> Arrays:
    _torchvision_on_the_cpu()
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    # SigLIP reads texts that are padded to its number of positions. For the other classes padding has no effect.
    padding = "max_length" if model.config.model_type == "siglip" else True
    tokens = tokenizer(probes["texts"].tolist(), padding=padding, truncation=True, return_tensors="pt")

    def embedded(images: Any) -> Any:
        pixels = processor([Image.fromarray(each) for each in images], return_tensors="pt")
        with torch.inference_mode():
            return model(**pixels, **tokens)

    found = embedded(probes["images"])
    scale, bias = model.logit_scale.exp().item(), getattr(model, "logit_bias", None)
    return {
        "image": found.image_embeds.numpy(),
        "text": found.text_embeds.numpy(),
        "photo": embedded(probes["photos"]).image_embeds.numpy(),
        "scale": np.array(scale),
        **({} if bias is None else {"bias": np.array(bias.item())}),
    }


def by_open_clip(folder: Path, probes: Arrays) -> Arrays:
    _torchvision_on_the_cpu()
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{folder}"
    model, _, preprocess = cast("tuple[Any, Any, Any]", open_clip.create_model_and_transforms(name))
    tokens = open_clip.get_tokenizer(name)(probes["texts"].tolist())
    model.eval()

    def embedded(images: Any) -> Any:
        pixels = torch.stack([preprocess(Image.fromarray(each)) for each in images])
        return model.encode_image(pixels, normalize=True).numpy()

    with torch.inference_mode():
        found = {
            "image": embedded(probes["images"]),
            "photo": embedded(probes["photos"]),
            "text": model.encode_text(tokens, normalize=True).numpy(),
            "scale": np.array(model.logit_scale.exp().item()),
        }
    bias = getattr(model, "logit_bias", None)
    return found if bias is None else {**found, "bias": np.array(bias.item())}


def by_safetensors(folder: Path, probes: Arrays) -> Arrays:
    from emocap_pretrain.interop.export.portable import read
    from emocap_pretrain.interop.export.probes import probes_of

    return {name: array for name, array in probes_of(read(folder)).items() if name in RESULTS and name in probes}


def _torchvision_on_the_cpu() -> None:
    """Makes torchvision importable beside a CPU build of torch, if the start of Python has not done so (decision 5)."""
    with suppress(ImportError):
        import emocap_torchvision

        emocap_torchvision.install()


FORMATS: dict[str, Callable[[Path, Arrays], Arrays]] = {
    "torch": by_torch,
    "onnx": by_onnx,
    "transformers": by_transformers,
    "open_clip": by_open_clip,
    "safetensors": by_safetensors,
}
RESULTS = ("image", "patches", "photo", "text", "sentence", "scale", "local_scale", "bias")


def difference(name: str, ours: Any, theirs: Any) -> float:
    """Returns the largest absolute difference of unit vectors, or the difference of a scale or a bias.

    The difference of a scale or a bias is relative to our value, if this value is above 1.

    Raises:
        ValueError: If the two results have different shapes.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{name} has the shape {list(theirs.shape)}, and {list(ours.shape)} in our model")
    most = float(np.abs(ours - theirs).max())
    return most if ours.ndim else most / max(1.0, abs(float(ours)))


def main(kind: str, folder: str, probes: str, result: str) -> None:
    with np.load(probes, allow_pickle=False) as file:
        arrays = dict(file)
    found = FORMATS[kind](Path(folder), arrays)
    if "emocap_pretrain" in sys.modules and kind != "safetensors":
        raise ImportError("emocap_pretrain was imported, so it may have taken part in the result")
    differences = {name: difference(name, arrays[name], np.asarray(each)) for name, each in found.items()}
    Path(result).write_text(json.dumps(differences), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
