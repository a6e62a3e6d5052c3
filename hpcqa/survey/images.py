"""Where the images of a table are: each folder is listed once, however many rows point into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hpcqa.errors import ConfigError
from hpcqa.survey.coded import Coded, pairs

IMAGES_FOLDER = "images"
Listing = Callable[[str], frozenset[str] | None]


@dataclass(frozen=True)
class Located:
    """The image file of each row: `path` is empty where it was not found, and `problem` says what was looked for.

    `no_folder` and `no_file` are bool (N,): not even the folder is there; the folder is, the file is not. `unreadable`
    is known only where headers were read.
    """

    path: Coded
    problem: Coded
    no_folder: np.ndarray
    no_file: np.ndarray
    unreadable: np.ndarray | None = None


def check_folders(folders: Sequence[str]) -> list[Path]:
    """The configured image folders.

    Raises:
        ConfigError: one of them is not there, or has a name that cannot be written down.
    """
    paths = [Path(folder).expanduser().absolute() for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"survey.images: {shown(path)} is not a folder; correct the path.")
        if not_text(path):
            raise ConfigError(f"survey.images: {shown(path)}: the {not_text(path)}.")
    return paths


def shown(path: Path | str) -> str:
    """A path as text that can be written down: bytes that are no UTF-8 stand in it by their numbers."""
    return str(path).encode(errors="backslashreplace").decode()


def not_text(path: Path) -> str:
    """What is wrong with a path that cannot be written down; empty if it can."""
    return "" if shown(path) == str(path) else "path is not in UTF-8; rename it"


def is_stream(path: Path) -> bool:
    """Whether there is neither a file nor a folder but a pipe or a device: reading it may never end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def locate(names: Coded, tables: Coded, folders: Sequence[Path]) -> Located:
    """Find the image of every row.

    Args:
        names: image file names as the tables give them, relative to an image folder.
        tables: the table of each row; with no `folders`, images lie in images/ beside it.
        folders: tried in turn, each with the whole relative name and then with less and less of its folders, down to
            the bare file name; with .fz or without.
    """
    combinations, index = pairs(tables.codes, names.codes, len(names.words))
    beside = [[str(Path(table).parent / IMAGES_FOLDER)] for table in tables.words]
    roots = [[str(folder) for folder in folders]] * len(beside) if folders else beside
    listing = cache(_listing)
    found = [_find(names.words[name], roots[table], listing) for table, name in combinations]
    codes = index.astype(np.int32)
    paths, problems, kinds = zip(*found, strict=True) if found else ((), (), ())
    kind = Coded(codes, kinds)
    return Located(
        path=Coded(codes, paths),
        problem=Coded(codes, problems),
        no_folder=kind.ask(lambda word: word == "folder", bool),
        no_file=kind.ask(lambda word: word == "file", bool),
    )


def _find(name: str, roots: Sequence[str], listing: Listing) -> tuple[str, str, str]:
    """The path, or an empty one with the problem in words and its kind (folder or file)."""
    if not name:
        return "", "the table gives no image file name", "file"
    for root in roots:
        for candidate in _candidates(name, root):
            folder, _, base = candidate.rpartition("/")
            entries = listing(folder) or frozenset()
            # Images are unpacked or packed at times, under the name that says so.
            for known in (base, base.removesuffix(".fz"), f"{base}.fz"):
                if known in entries:
                    return f"{folder}/{known}", "", ""
    where = " nor ".join(roots)
    if all(listing(root) is None for root in roots):
        return "", f"no folder {where}", "folder"
    return "", f"no {name} in {where}", "file"


def _candidates(name: str, root: str) -> list[str]:
    """Where an image may be: tables that moved bring the folders of another machine with them."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    tails = ["/".join([root, *parts[start:]]) for start in range(len(parts))]
    return list(dict.fromkeys([name if name.startswith("/") else f"{root}/{name}", *tails]))


def _listing(folder: str) -> frozenset[str] | None:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError:
        return None
