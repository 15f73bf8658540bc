"""Finds and renumbers the tokens on which the pooling of other libraries relies.

Our text tower takes the vector of the last token of a text (`pooling: eos`), whatever its id. CLIP's text model of
transformers and that of open_clip look for the id of the end token instead. Both agree if every text ends with the same
token, and no text has this token before its end.
"""

import json
from typing import Any

from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export.probes import CAPTIONS
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.model.transformers_text import TransformersTextTower

# Older configs of CLIP had a wrong end token, 2. For this id transformers takes the largest id of a text instead.
LEGACY_END = 2


def end_token(restored: Restored, text: TransformersTextTower, kind: str) -> int:
    """Returns the id of the token with which every text ends, even a text that is cut to the length of a prompt.

    Raises:
        ConfigError: If texts end with different tokens, or the token also occurs before the end of a text. Then no
            format can find the last token by its id.
    """
    if text.end_id is not None:
        return text.end_id
    encoded = restored.tokenizer.encode(CAPTIONS, restored.model.prompt_length)
    rows = [row[mask].tolist() for row, mask in zip(encoded.ids, encoded.mask, strict=True)]
    ends = {row[-1] for row in rows}
    if len(ends) != 1 or any(ends & set(row[:-1]) for row in rows):
        raise ConfigError(
            f"--to {kind}: model.text.pooling=eos takes the last token of a text, but {kind} looks for one end token, "
            "and this tokenizer does not end every text with a token that occurs nowhere else in the text; "
            "export to onnx, torch or safetensors."
        )
    return ends.pop()


def texts_cut_later(restored: Restored, text: TransformersTextTower) -> tuple[str, ...]:
    """Returns a line for the model card, if other libraries cut long texts later than this project does.

    That is so for a text tower of SigLIP with more positions than a prompt has tokens. Otherwise the result is empty.
    """
    ours, theirs = restored.model.prompt_length, text.positions
    if text.pooling != "last" or ours == theirs:
        return ()
    return (f"emocap_pretrain cuts texts to {ours} tokens and pads them to {theirs}; this tokenizer cuts to {theirs}.",)


def swapped(tokenizer: Tokenizer, one: int, other: int) -> str:
    """Returns the text of a `tokenizer.json` in which two tokens have exchanged their ids.

    Raises:
        ConfigError: If the tokenizer does not list its tokens with their ids.
    """
    tree = json.loads(tokenizer.to_json())
    ids = {one: other, other: one}
    vocabulary = tree["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        raise ConfigError("the tokens of this tokenizer cannot get other ids; export to onnx, torch or safetensors.")
    tree["model"]["vocab"] = {token: ids.get(number, number) for token, number in vocabulary.items()}
    added = {ids.get(token["id"], token["id"]): token for token in tree["added_tokens"]}
    # In the order of their ids, in which transformers adds them again.
    tree["added_tokens"] = [{**token, "id": number} for number, token in sorted(added.items())]
    for token in _template_tokens(tree.get("post_processor")):
        token["ids"] = [ids.get(number, number) for number in token["ids"]]
    return json.dumps(tree, ensure_ascii=False)


def _template_tokens(post_processor: Any) -> list[dict[str, Any]]:
    """Returns the special tokens that a template adds to each text; empty without a template."""
    if not isinstance(post_processor, dict) or post_processor.get("type") != "TemplateProcessing":
        return []
    return list(post_processor["special_tokens"].values())
