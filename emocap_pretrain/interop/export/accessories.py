"""Writes what every format needs besides the weights: the tokenizer and the settings of the image processor."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from emocap_pretrain.data.tokenizer import END, PAD, START
from emocap_pretrain.interop.restore import Restored

PREPROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # Pillow's number of the filter.
# The special tokens by their role: those of our own tokenizers, of BERT, and of RoBERTa and CLIP.
_SPECIAL_TOKENS = {
    "pad_token": (PAD, "[PAD]", "<pad>"),
    "bos_token": (START, "<s>", "<|startoftext|>"),
    "eos_token": (END, "</s>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}


def write_accessories(restored: Restored, folder: Path, *, tokenizer: str | None = None) -> None:
    """Writes the tokenizer in the form of transformers, and `preprocessor_config.json`.

    Args:
        restored: The model.
        folder: The folder of the export.
        tokenizer: The text of a `tokenizer.json` in place of the model's own, for a format that numbers tokens in
            another way.
    """
    write_tokenizer(restored, folder, tokenizer or restored.tokenizer.to_json())
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessor(restored), indent=1), encoding="utf-8")


def write_tokenizer(restored: Restored, folder: Path, text: str) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Both the library `tokenizers` and transformers read them. Texts are cut to the length of a prompt, as our own
    `Embedder` cuts them, and padded at the end. A text tower of SigLIP reads the padding, so for such a tower texts are
    cut and padded to its number of positions.
    """
    fast = FastTokenizer.from_str(text)
    found = {
        name: next((token for token in tokens if fast.token_to_id(token) is not None), None)
        for name, tokens in _SPECIAL_TOKENS.items()
    }
    length, inputs = restored.model.prompt_length, ["input_ids", "attention_mask"]
    # Without a padding token, the end token pads a text, as in CLIP. Padding is masked, so any token would do.
    pad = found["pad_token"] or found["eos_token"] or str(fast.id_to_token(0))
    tower: Any = restored.model.text
    if getattr(tower, "pooling", "") == "last":  # SigLIP sees the padding, and takes no mask.
        length, inputs, pad = tower.positions, ["input_ids"], str(fast.id_to_token(tower.pad_id))
    fast.enable_truncation(length)
    fast.enable_padding(pad_id=fast.token_to_id(pad), pad_token=pad)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=length,
        padding_side="right",
        truncation_side="right",
        model_input_names=inputs,
        **{**{name: token for name, token in found.items() if token is not None}, "pad_token": pad},
    )
    wrapped.save_pretrained(folder)


def preprocessor(restored: Restored) -> dict[str, Any]:
    """Returns the settings of the image processor of transformers that crops and resizes as this project does.

    `PerceiverImageProcessor` crops the central square and then resizes it, as `center_crop` does. The processors of
    CLIP and SigLIP resize first. So they shift the crop of an image that is not square by a fraction of a pixel.
    """
    side = {"height": restored.model.pixels, "width": restored.model.pixels}
    mean, std = statistics(restored)
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "do_convert_rgb": True,
        "do_center_crop": True,
        "crop_size": side,
        "do_resize": True,
        "size": side,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def statistics(restored: Restored) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation of each colour channel, for pixel values in [0, 1]."""
    tower: Any = restored.model.image
    # Dividing by 255 may change the last digit; rounding restores the numbers of timm's config.
    mean, std = ([round(value / 255, 7) for value in each.flatten().tolist()] for each in (tower.mean, tower.std))
    return mean, std
