"""Reads a Hugging Face dataset as `save_to_disk` writes it. It uses pyarrow and does not need the `datasets` library.

The dataset is a folder with `state.json` (the Arrow files in their order), `dataset_info.json` (the features, with the
names of classes) and the files themselves: Arrow streams in which images are objects of "bytes" and "path".
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, LocalFile, SourceRow
from emocap_shards.writing.sources.batches import rows_of
from emocap_shards.writing.sources.classes import Classes, classes_of, with_names
from emocap_shards.writing.sources.columns import TableColumns, row_of

STATE = "state.json"
SPLITS = "dataset_dict.json"
_INFO = "dataset_info.json"


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """Reads the rows of one split. A class label becomes its name. The class -1 means no class, and gives no label."""

    folder: Path
    columns: TableColumns
    images: ImageFolders

    @property
    def total(self) -> int | None:
        return None

    def rows(self) -> Iterator[SourceRow | BadRow]:
        classes = self._classes()
        number = 0
        for file in self._files():
            for values in self._values(file):
                where = f"{self.folder}: row {number}"
                try:
                    yield row_of(
                        with_names(values, classes), self.columns, where=where, number=number, images=self.images
                    )
                except RecordError as error:
                    yield BadRow(where, str(error))
                number += 1

    def _files(self) -> list[str]:
        """Returns the real paths of the Arrow files in order. A file outside of the folder is refused."""
        state = _load(self.folder / STATE)
        if state.get("_indices_data_files"):
            raise RecordError(f"{self.folder} holds indices beside its rows; save it again after flatten_indices().")
        root = os.path.realpath(self.folder)
        try:
            return [LocalFile(root, file["filename"]).locate() for file in state["_data_files"]]
        except (KeyError, TypeError) as error:
            raise RecordError(f"{self.folder / STATE} names no data files ({error!r}).") from error

    def _classes(self) -> Classes:
        features: dict[str, Any] = _load(self.folder / _INFO).get("features") or {}
        self.columns.check(list(features), where=str(self.folder))
        return classes_of(features, self.columns.used)

    def _values(self, file: str) -> Iterator[dict[str, Any]]:
        try:
            with pa.memory_map(file) as source, pa.ipc.open_stream(source) as stream:
                wanted = [name for name in stream.schema.names if name in self.columns.used]
                for batch in stream:
                    yield from rows_of(batch.select(wanted))
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{file} cannot be read as an Arrow stream ({error}).") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read ({error}); save the dataset again with save_to_disk.") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} holds no JSON object; save the dataset again with save_to_disk.")
    return cast("dict[str, Any]", value)
