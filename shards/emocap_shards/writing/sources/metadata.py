"""Reads a folder of images with a table of them, in the form of ImageFolder of Hugging Face.

The table is `metadata.jsonl` or `metadata.csv` in the folder. Its column `file_name` holds the paths of the images. Its
captions are in the column of the global part, or else in `text` or `caption`.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from emocap_shards.writing.row import BadRow, LocalFile, SourceRow
from emocap_shards.writing.row_source import leave_out, take_back
from emocap_shards.writing.sources.columns import STANDARD, TableColumns
from emocap_shards.writing.sources.folder import entries_of, is_hidden, split_name, walk_images
from emocap_shards.writing.sources.text_tables import DelimitedSource, JsonSource

TABLES = ("metadata.jsonl", "metadata.csv")
_TABLES = frozenset({"csv", "tsv", "jsonl", "ndjson", "parquet"})


@dataclass(frozen=True, slots=True)
class MetadataSource:
    """Provides the rows of the table. `left_out` counts the other files, and the images that the table does not name.

    All paths of images are in memory.
    """

    table: DelimitedSource | JsonSource
    left_out: Counter[str] = field(default_factory=Counter[str], compare=False)

    def rows(self) -> Iterator[SourceRow | BadRow]:
        self.left_out.clear()
        root, named = self.table.images.root, set[str]()
        for row in self.table.rows():
            image = row.image if isinstance(row, SourceRow) else LocalFile(root, row.file)
            if isinstance(image, LocalFile):
                named.add(os.path.normpath(os.path.join(root, image.path)))  # noqa: PTH118
            yield row
        for found in walk_images(root, self.left_out):
            if isinstance(found, BadRow):
                leave_out(self.left_out, "links to folders")
            elif f"{root}/{found}" not in named:
                leave_out(self.left_out, f"images that {self.table.path.name} does not name")
        if self.table.images.table == root:  # The table itself is one of the files.
            take_back(self.left_out, {self.table.path.suffix: 1})


def tables_in(folder: Path) -> list[str]:
    """Returns the paths of the tables in a folder and in the folders directly in it, sorted.

    Such a table probably has the captions or labels of the images around it, such as `train/metadata.csv`.
    """
    entries = sorted(entries_of(folder), key=lambda entry: entry.name)
    inner = [entry.path for entry in entries if not is_hidden(entry.name) and entry.is_dir(follow_symlinks=False)]
    files = [entry for each in inner for entry in sorted(entries_of(each), key=lambda entry: entry.name)]
    return [
        each.path for each in (*entries, *files) if split_name(each.name)[1] in _TABLES and not is_hidden(each.name)
    ]


def metadata_columns(columns: TableColumns) -> TableColumns:
    """Returns the columns of such a table, if the user has named `columns`."""
    image = "file_name" if columns.image == STANDARD.image else columns.image
    return replace(columns, image=image, instead=("text", "caption"))
