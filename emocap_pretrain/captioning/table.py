"""Writes the stored captions as a Parquet table that `emocap pack` reads, and the rows without a caption as JSON lines.

The table has a row for each face with a caption, in the order of the source: its key, its image (a path, or the bytes
where the source has no files), the three parts of the caption, the labels of the source, and where the caption comes
from. The same answers give the same table.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from emocap_shards.writing.row import LocalFile, SourceRow
from emocap_shards.writing.row_source import RowSource

from emocap_pretrain.bulk.new_file import writing_to
from emocap_pretrain.captioning.faces import Labels, labels_of
from emocap_pretrain.captioning.journal import AnswerJournal, StoredAnswer
from emocap_pretrain.captioning.protocol import Json
from emocap_pretrain.captioning.run import FaceRow

TABLE, LEFT_OUT = "captions.parquet", "left_out.jsonl"
_TOGETHER = 256  # Rows of a row group. With images of 1 MB each, this is the memory that a group needs in MB.
_NO_ANSWER = "no answer has arrived"


@dataclass(slots=True)
class CaptionTable:
    """Collects the rows of a run in the order of the source (`note`), and writes the table from the journal (`write`).

    It holds 32 letters for each row, and the names and types of the labels.
    """

    journal: AnswerJournal
    reasons: Counter[str] = field(default_factory=Counter[str])
    written: int = 0
    _requests: list[str] = field(default_factory=list[str])
    _problems: dict[int, str] = field(default_factory=dict[int, str])
    _types: dict[str, Any] = field(default_factory=dict[str, Any])

    def note(self, row: FaceRow) -> None:
        """Adds a row of the source."""
        if row.problem:
            self._problems[len(self._requests)] = row.problem
        self._requests.append(row.request)
        for name, value in row.labels.items():
            self._types[name] = _wider(self._types.get(name), value)

    def write(self, source: RowSource, folder: Path, about: Mapping[str, Any]) -> None:
        """Writes both files. The rows of the source must be those that were noted.

        Args:
            source: The source of the faces.
            folder: The folder of the output.
            about: Facts that are stored in the metadata of the table.

        Raises:
            StoreError: If a file cannot be written.
        """
        self.reasons.clear()
        self.written = 0
        with writing_to(folder / LEFT_OUT) as left_out, writing_to(folder / TABLE) as path:
            schema = self._schema(about)
            with (
                left_out.open("w", encoding="utf-8") as lines,
                pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as file,
            ):
                for group in _groups(self._rows(source, lines)):
                    file.write_table(pa.Table.from_pylist(group, schema=schema))
                    self.written += len(group)

    def _schema(self, about: Mapping[str, Any]) -> Any:
        labels = [pa.field(name, kind) for name, kind in sorted(self._types.items())]
        text, texts = pa.string(), pa.list_(pa.string())
        fields = [("key", text), ("image", pa.struct([("path", text), ("bytes", pa.binary())]))]
        fields += [("global", text), ("local", texts), ("summary", text)]
        fields += [("labels", pa.struct(labels))] if labels else []
        fields += [("regions", text), ("cues", texts), ("captioner", text), ("prompt", text), ("request", text)]
        fields += [("captioned_at", text)]
        return pa.schema(fields, metadata={"emocap": json.dumps(about)})

    def _rows(self, source: RowSource, left_out: Any) -> Iterator[dict[str, Any]]:
        """Yields the rows of the table, and writes the others to `left_out`."""
        for number, (row, request) in enumerate(zip(source.rows(), self._requests, strict=False)):
            stored = self.journal.read(request) if request else None
            if isinstance(row, SourceRow) and stored is not None and stored.answer.caption is not None:
                yield self._row(row, stored)
                continue
            answer = stored.answer if stored else None
            problem = self._problems.get(number, "")
            reason = answer.reason if answer else ("unreadable_row" if problem else "no_answer")
            self.reasons[reason] += 1
            detail = answer.text if answer else problem or _NO_ANSWER
            key = row.key if isinstance(row, SourceRow) else row.where
            line = {"key": key, "reason": reason, "detail": detail}
            left_out.write(json.dumps(line, ensure_ascii=True) + "\n")

    def _row(self, row: SourceRow, stored: StoredAnswer) -> dict[str, Any]:
        answer = stored.answer
        assert answer.caption is not None, "a row of the table has a caption"
        image = {"path": row.image.path} if isinstance(row.image, LocalFile) else {"bytes": row.image}
        return {
            "key": row.key,
            "image": image,
            "global": answer.caption.global_,
            "local": list(answer.caption.local),
            "summary": answer.caption.summary,
            "labels": _typed(labels_of(row), self._types),
            "regions": json.dumps(_plain(answer.regions), ensure_ascii=False),
            "cues": list(answer.cues),
            "captioner": answer.model,
            "prompt": stored.prompt,
            "request": stored.id,
            "captioned_at": stored.at,
        }


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _wider(known: Any, value: str | float) -> Any:
    """Returns the type of a column of labels that holds the values so far and another one."""
    found = pa.string() if isinstance(value, str) else pa.float64() if isinstance(value, float) else pa.int64()
    if known is None or known == found:
        return found
    return pa.string() if pa.string() in {known, found} else pa.float64()


def _typed(labels: Labels, types: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if types[name] == pa.string() else value for name, value in labels.items()}


def _plain(regions: Iterable[Json]) -> list[dict[str, Any]]:
    return [dict(each) for each in regions]
