"""What README and docs say is run: every Python block as it stands, every command of ours that they show."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from statescan.cli import commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Pages whose blocks belong to a test of their own.
ELSEWHERE = {"foreign_weights.md"}
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(language):
    for page in PAGES:
        if page.name in ELSEWHERE:
            continue
        for number, match in enumerate(BLOCK.finditer(page.read_text())):
            if match.group(1) == language:
                yield pytest.param(match.group(2), id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", blocks("console"))
def test_commands_exist(code):
    """Commands of ours are known, with the flags that are shown; `make` targets are in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words = words[1:]
        if not words:
            continue
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[0] == "statescan":
            assert words[1] in commands(), line
            sub = [w for w in words[2:3] if w in ("language", "synthetic", "lm-eval")]
            shown = subprocess.run(
                [sys.executable, "-m", "statescan", words[1], *sub, "--help"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for flag in (w for w in words if w.startswith("--")):
                assert flag in shown, f"{flag} of: {line}"
        elif words[0] == "python":
            assert words[1] == "-m", line
        else:
            assert words[0] in ("pip",), line


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
