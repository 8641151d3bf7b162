"""Parquet files that are complete or absent, and tables that a killed run continues."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ilis_guard.errors import FitError
from ilis_guard.lab.files import replacing


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table; the file appears when it is complete and on disk.

    Raises:
        OSError: the file can't be written.
    """
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")


class PartialTable:
    """The rows of a table while it is made: a folder of Parquet files, from which a run that was killed continues.

    Args:
        path: the file that the table becomes. The folder stands beside it, its name hidden and ending in
            ``.unfinished``.
        schema: columns, among them ``id``, with a manifest in the metadata: a run continues only what was made in the
            very same way.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._folder = path.with_name(f".{path.name}.unfinished")
        self._schema = schema
        self._path = path

    def begin(self) -> frozenset[str]:
        """Make the folder, or find what an earlier run left in it, and return the ids of the rows that are there.

        Raises:
            FitError: the rows there were made differently, or can't be read.
            OSError: nothing can be written beside the file.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))
        self._folder.mkdir(exist_ok=True)
        for remnant in self._folder.glob(".*"):  # a file that was being written when a run was killed
            remnant.unlink()
        return frozenset(id_ for file in self._files() for id_ in self._read(file)["id"].to_pylist())

    def add(self, rows: pa.Table) -> None:
        """Keep some rows; they are on disk when this returns.

        Raises:
            OSError: they can't be written.
        """
        number = sum(1 for _ in self._folder.iterdir())
        write_table(rows, self._folder / f"{number:06d}.parquet")

    def finish(self, ids: Sequence[str]) -> None:
        """Write the file with its rows in the order of these ids, and remove the folder.

        Raises:
            OSError: the file can't be written; the folder stays.
        """
        table = pa.concat_tables([self._schema.empty_table(), *(self._read(file) for file in self._files())])
        place = {id_: index for index, id_ in enumerate(table["id"].to_pylist())}
        write_table(table.take(pa.array([place[id_] for id_ in ids], pa.int64())), self._path)
        shutil.rmtree(self._folder)

    def discard_if_empty(self) -> None:
        """Remove the folder where nothing was made."""
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _read(self, file: Path) -> pa.Table:
        try:
            with file.open("rb") as opened:
                table = pq.read_table(opened)
        except (OSError, pa.ArrowException) as error:
            raise FitError(
                f"{str(file)!r} is part of an unfinished table and can't be read ({type(error).__name__}: {error}); "
                "remove it, and its rows are made again"
            ) from error
        if (table.schema.metadata or {}) != self._schema.metadata:
            raise FitError(
                f"{str(self._folder)!r} holds an unfinished table that was made differently (other questions or "
                "answers, another model, prompt, judge or version); continue as it was begun, remove it, or write "
                "elsewhere"
            )
        return table
