"""Where a file came from and what it holds: the record inside every artifact, and the digest of its content."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path

from hpcqa import __version__
from hpcqa.artifacts.schema import Provenance, Schema
from hpcqa.errors import DataError

PROVENANCE_KEY = "hpcqa"


def finish(schema: Schema, provenance: Provenance, num_rows: int, content: str) -> Provenance:
    """The provenance as it is stored, complete with what only the writer knows."""
    return dataclasses.replace(
        provenance,
        schema=schema.name,
        schema_version=schema.version,
        code_version=__version__,
        num_rows=num_rows,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        content=content,
    )


def to_text(provenance: Provenance) -> str:
    """The record as a file carries it."""
    return json.dumps(dataclasses.asdict(provenance), sort_keys=True)


def parse(text: str | None, path: Path, schema: Schema | None = None) -> Provenance:
    """The record that a file carries.

    Raises:
        DataError: there is none, it does not parse, or it is not of `schema` when one is given.
    """
    if text is None:
        raise DataError(f"{path}: carries no provenance, so it is not an artifact of hpcqa.")
    try:
        provenance = Provenance(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: its provenance does not parse ({error}); remove it and run its stage again."
        ) from None
    if schema is not None and (provenance.schema, provenance.schema_version) != (schema.name, schema.version):
        raise DataError(
            f"{path}: holds {provenance.schema} v{provenance.schema_version}, expected {schema.name} "
            f"v{schema.version}; run its stage again with this version of hpcqa."
        )
    return provenance


def is_made_from(provenance: Provenance, config_digest: str, parents: Mapping[str, str]) -> bool:
    """Whether a file was made from this configuration and these parents."""
    return provenance.config_digest == config_digest and dict(provenance.parents) == dict(parents)
