"""Joins the files of all parts into one output: Parquet, CSV or NPZ. Only some thousand rows are in memory at a time.

The output depends on the rows of the parts alone, so an interruption of the command changes no bit of it.
"""

import json
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from emocap_shards.errors import StoreError

from emocap_pretrain.bulk.new_file import writing_to
from emocap_pretrain.bulk.scorers import SIZE, Field
from emocap_pretrain.errors import ConfigError

Format = Literal["parquet", "csv", "npz"]
Table: TypeAlias = Any
"""A `pyarrow.Table`. pyarrow has no types that pyright knows."""
pc: Any = pyarrow.compute
ROWS_TOGETHER = 8192
"""Smallest number of rows of a row group of a Parquet file, except the last group."""
ABOUT = "emocap"
"""Key of the metadata of a Parquet file, and name of the array of an NPZ file, that record the origin of the output."""
_EXAMPLES = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)  # The earliest date in a zip file. The current date would make equal outputs differ.


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Counts the rows of the output and those with an error. `examples` are the first errors as (name, error)."""

    rows: int
    errors: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PartTables:
    """Reads the rows of all parts in order, as often as they are needed."""

    paths: Sequence[Path]

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Table]:
        """Yields tables of at most a few thousand rows.

        Raises:
            StoreError: If the file of a part is damaged.
        """
        for path in self.paths:
            with _reading(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)

    def schema(self) -> Any:
        with _reading(self.paths[0]) as file:
            return file.schema_arrow

    def counts(self) -> RowCounts:
        rows = errors = 0
        examples: list[tuple[str, str]] = []
        for path in self.paths:
            with _reading(path) as file:
                rows += file.metadata.num_rows
                found = int((file.metadata.metadata or {}).get(b"errors", 0))
                if found and len(examples) < _EXAMPLES:
                    table = file.read(["name", "error"])
                    bad = table.filter(pc.is_valid(table["error"])).slice(0, _EXAMPLES - len(examples))
                    examples += [(row["name"], row["error"]) for row in bad.to_pylist()]
                errors += found
        return RowCounts(rows, errors, tuple(examples))


def format_of(out: Path, given: Format | None) -> Format:
    """Returns the format that the user has given, or that the suffix of the output names.

    Raises:
        ConfigError: If neither names a format.
    """
    for each in get_args(Format):
        if each == (given or out.suffix[1:].lower()):
            return each
    raise ConfigError(f"--out {out}: give it the suffix .parquet, .csv or .npz, or give --format.")


def join(parts: PartTables, out: Path, kind: Format, about: Mapping[str, Any]) -> None:
    """Writes the output. `about`, the origin of the output, is stored in it as JSON, except in a CSV file.

    Raises:
        StoreError: If the file cannot be written, or the file of a part is damaged.
    """
    with writing_to(out) as path:
        _WRITERS[kind](parts, path, json.dumps(about, ensure_ascii=False))


def _parquet(parts: PartTables, path: Path, about: str) -> None:
    schema = parts.schema().with_metadata({ABOUT: about})
    # Names and numbers hardly ever repeat, so a dictionary encoding of them would only take time.
    repeated: Any = [name for name in ("predicted", "error") if name in schema.names]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated) as file:
        for table in _grouped(parts.tables()):
            file.write_table(table.cast(schema))


def _grouped(tables: Iterator[Table]) -> Iterator[Table]:
    """Yields the rows of `tables` in tables of at least `ROWS_TOGETHER` rows; the last table may have fewer."""
    waiting: list[Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_TOGETHER:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _csv(parts: PartTables, path: Path, about: str) -> None:  # noqa: ARG001 - there is no place for it
    options = pacsv.WriteOptions(quoting_style="needed")
    schema = _flat(parts.schema().empty_table()).schema
    with pacsv.CSVWriter(path, schema, write_options=options) as file:
        for table in parts.tables():
            file.write_table(_flat(table))


def _flat(table: Table) -> Table:
    """Returns the table with a column e0, e1, ... for each number of the vectors."""
    columns: dict[str, Any] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_list(field.type):
            columns |= {f"e{place}": pc.list_element(column, place) for place in range(_size(field))}
        else:
            columns[field.name] = column
    return pa.table(columns)


def _size(field: Field) -> int:
    return int(field.metadata[SIZE])


def _npz(parts: PartTables, path: Path, about: str) -> None:
    schema, rows = parts.schema(), parts.counts().rows
    with zipfile.ZipFile(path, "w") as archive:
        for field in schema:
            dtype, shape = _array_type(parts, field)
            with _member(archive, field.name, dtype, (rows, *shape)) as file:
                for table in parts.tables([field.name]):
                    file.write(_values(table[field.name], dtype, shape).tobytes())
        text = np.array(about)
        with _member(archive, ABOUT, text.dtype, ()) as file:
            file.write(text.tobytes())


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...]) -> Generator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    # A text array has room for the longest text in each row, so it is mostly zeros. Compression hardly shrinks numbers.
    info.compress_type = zipfile.ZIP_DEFLATED if dtype.kind == "U" else zipfile.ZIP_STORED
    with archive.open(info, "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _array_type(parts: PartTables, field: Field) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Returns the type of the array of a column, and the sizes of its axes after the first one."""
    if pa.types.is_list(field.type):
        return np.dtype(np.float32), (_size(field),)
    if pa.types.is_string(field.type):
        lengths = (pc.max(pc.utf8_length(table[field.name])).as_py() or 0 for table in parts.tables([field.name]))
        return np.dtype(f"<U{max([1, *lengths])}"), ()
    return np.dtype(field.type.to_pandas_dtype()), ()


def _values(column: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Returns the values of a column as an array [rows, *shape], in which nulls become NaN, -1 or an empty text."""
    if shape:
        found = np.full((len(column), *shape), np.nan, dtype)
        found[column.is_valid().to_numpy()] = np.asarray(pc.list_flatten(column)).reshape(-1, *shape)
        return found
    missing = "" if dtype.kind == "U" else np.nan if dtype.kind == "f" else -1
    return np.asarray(column.fill_null(missing).to_numpy(), dtype)


@contextmanager
def _reading(path: Path) -> Generator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, FileNotFoundError) as error:
        cure = "delete it, and start the same command again"
        raise StoreError(f"the part {path} cannot be read ({str(error).splitlines()[0]}): {cure}.") from error


_WRITERS: Mapping[Format, Callable[[PartTables, Path, str], None]] = {"parquet": _parquet, "csv": _csv, "npz": _npz}
