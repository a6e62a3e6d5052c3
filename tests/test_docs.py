"""Documentation that cannot rot: links lead somewhere, the file formats are the catalog's, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcqa.artifacts.describe import document
from hpcqa.compose import check_keys
from hpcqa.helptext import COMMANDS
from hpcqa.stages import STAGES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
COMMAND = re.compile(r"^\s*(?:\$ )?(?:srun [^#\n]*?)?hpcqa ([a-z-]+)([^#\n]*)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, _ in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_settings_exist(page):
    names = {"run", *(stage.name for stage in STAGES), *(name.split()[0] for name, _ in COMMANDS)}
    for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", page.read_text(), re.DOTALL):
        for name, rest in COMMAND.findall(block.replace("\\\n", " ")):
            assert name in names, f"{page.name}: hpcqa {name}"
            if name == "run" or name in {stage.name for stage in STAGES}:
                words = [word for word in rest.split() if "=" in word and not word.startswith("-")]
                check_keys(words)


def test_file_formats_are_the_catalogs():
    page = ROOT / "docs" / "file-formats.md"
    assert page.read_text() == document(), "run `make docs`"
