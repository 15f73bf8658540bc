"""Defines the type of a format of exports. docs/export.md describes the formats for users."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emocap_pretrain.interop.restore import Restored


def _keep(present: Path, later: Path) -> None:
    """Changes nothing, for formats whose files contain no paths."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """Defines one format: how it is written, and what a user needs to load it.

    Attributes:
        name: Name on the command line.
        about: One sentence for the model card and for `--help`.
        library: The library that loads the export, as it is named in messages.
        modules: The modules that must be importable, with the names of their packages on PyPI.
        write: Writes the model into a folder. It raises ConfigError if the format cannot hold the model.
        lacks: Returns one line for each part of the model that the format cannot hold.
        loading: The lines of Python that load the export and embed an image and a text, for the model card.
        moved: Called with the temporary folder of the export and with the destination, just before the folder is
            renamed. A format whose files contain the path of the folder replaces it here.
    """

    name: str
    about: str
    library: str
    modules: Mapping[str, str]
    write: Callable[[Restored, Path], None]
    lacks: Callable[[Restored], tuple[str, ...]]
    loading: str
    moved: Callable[[Path, Path], None] = _keep


def without_head(restored: Restored) -> tuple[str, ...]:
    """Returns what an export lacks in a format that cannot hold the head: one line that names the labels.

    The result is empty if the model has no head.
    """
    labels = ", ".join(label.name for label in restored.model.labels)
    line = f"The head is left out, which predicts the labels ({labels}). The format `safetensors` keeps it."
    return (line,) if labels else ()
