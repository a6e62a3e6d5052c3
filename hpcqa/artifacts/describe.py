"""The file formats in words, from the schemas themselves: `make docs` writes docs/file-formats.md with it."""

from __future__ import annotations

import sys

from hpcqa.artifacts import catalog
from hpcqa.artifacts.schema import Schema

HEADER = """# File formats

Written by `make docs` from `hpcqa/artifacts/catalog.py`; a test compares the two. Tables are Parquet, arrays are HDF5
with contiguous datasets. Each file carries its provenance as JSON (Parquet metadata key or HDF5 attribute `hpcqa`):
schema and version, digest of the settings that shaped it, code version, content digests of its parents, instrument,
number of rows, creation time, and a SHA-256 of its own content. Rows are joined by key, never by position.
"""


def schemas() -> list[Schema]:
    """Every schema of the catalog, in its order."""
    return [value for value in vars(catalog).values() if isinstance(value, Schema)]


def describe(schema: Schema) -> str:
    """A Markdown section with a table of columns."""
    key = f", key ({', '.join(schema.key)})" if schema.key else ""
    lines = [
        f"## {schema.name} v{schema.version}{key}",
        "",
        "| name | dtype | axes | unit | meaning |",
        "|---|---|---|---|---|",
    ]
    for column in schema.columns:
        note = " Not always there." if column.optional else ""
        lines.append(
            f"| {column.name} | {column.dtype} | {', '.join(column.dims)} | {column.unit} | {column.doc}{note} |"
        )
    return "\n".join(lines)


def document() -> str:
    """The whole page."""
    return "\n\n".join([HEADER.rstrip(), *(describe(schema) for schema in schemas())]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
