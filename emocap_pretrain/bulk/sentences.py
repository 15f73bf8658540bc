"""Reads the file of sentences by which `emocap predict` scores images.

The file is a YAML mapping. Each key gives a column of scores, and its value is a sentence, a list of sentences, or a
mapping with `sentences` and `aligned_with`:

    AU12: The corners of the mouth are raised.
    open_mouth: [The mouth is open., The lips are parted.]
    smiling: {sentences: a person who smiles, aligned_with: image}

`inference/facs.yaml` is the default file. It has the action units of the grammar of captions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from emocap_pretrain.config.fields import Section, Words
from emocap_pretrain.config.user_yaml import read_yaml
from emocap_pretrain.inference.classes import validated


class SentenceColumnConfig(Section):
    """Describes one column of scores: the mean score of an image with some sentences.

    `aligned_with` says whether the sentences are compared with the pooled vector of an image, or with its patches as in
    the local loss. None takes the patches if the model was trained with the local loss, and otherwise the pooled
    vector.
    """

    sentences: Words = Field(description="A sentence or a list of sentences.")
    aligned_with: Literal["image", "patches"] | None = Field(default=None, description="image or patches.")


def _as_section(value: Any) -> Any:
    return value if isinstance(value, Mapping | SentenceColumnConfig) else {"sentences": value}


_Key = Annotated[str, BeforeValidator(str), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}$")]
SentenceFile = dict[_Key, Annotated[SentenceColumnConfig, BeforeValidator(_as_section)]]
_FILE: TypeAdapter[dict[str, SentenceColumnConfig]] = TypeAdapter(Annotated[SentenceFile, Field(min_length=1)])


def read_sentences(path: Path) -> dict[str, SentenceColumnConfig]:
    """Returns the sentences of a file by their keys, in the order of the file.

    Raises:
        ConfigError: If the file cannot be read, or does not have the form above.
    """
    return validated(_FILE, read_yaml(path, "--sentences"), f"--sentences {path}")
