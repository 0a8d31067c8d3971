"""What README and docs say is run: every Python block as it stands, every command, and the documentation's own build.

A page is read from top to bottom in an empty folder with two text files and a folder of images. Commands that train do so
for a few steps of a very small model. A block under a comment ``<!-- not run: why -->`` is only held to flags that exist, if
it holds commands.
"""

import contextlib
import functools
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from statescan import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Pages whose Python blocks belong to a test of their own.
ELSEWHERE = {"foreign_weights.md"}
BLOCK = re.compile(r"(?P<note><!-- not run: [^\n]+ -->\n)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```", re.S | re.M)
#: What makes training short.
SMALL = {
    "--steps": ["3"],
    "--batch-size": ["2"],
    "--set": ["dim=16", "depth=1"],
    "--log-every": ["1"],
}
SMALL_TEXT = SMALL | {"--length": ["32"]}
SMALL_SEQUENCES = {"--steps": ["2"]}
SMALL_IMAGES = {
    "--epochs": ["0.2"],
    "--batch-size": ["4"],
    "--set": ["dim=16", "depth=1", "state_dim=4"],
    "--size": ["8"],
}
SMALL_ARENA = {
    "--steps": ["2"],
    "--batch-size": ["2"],
    "--width": ["8"],
    "--depth": ["1"],
    "--examples": ["4"],
    "--test-examples": ["2"],
}
SMALL_AGENT = {
    "--updates": ["2"],
    "--copies": ["4"],
    "--length": ["16"],
    "--set": ["dim=8", "depth=1", "encoder_dim=8", "head_dim=8"],
}
SMALL_CHAIN = {
    "--steps": ["2"],
    "--set": ["dim=8", "depth=1", "patch=14"],
    "--fractions": ["0.6"],
    "--examples": ["30"],
}
SMALL_CUBE = {"--steps": ["2"], "--batch-size": ["2"], "--set": ["dim=8", "depth=1", "window=3", "hidden=8"]}
SMALL_RECORDS = SMALL | {"--records": ["40"], "--least": ["2"]}
SMALL_EXPERIMENT = {
    "--models": ["mamba_4"],
    "--length": ["4"],
    "--test-lengths": ["3"],
    "--steps": ["2"],
    "--dim": ["16"],
    "--depth": ["1"],
    "--batch-size": ["2"],
    "--examples": ["4"],
    "--seeds": ["0"],
}
SMALL_TASK = SMALL | {"--task-set": ["length=16"], "--validation-examples": ["4"]}

BOOK = "And God said, Let there be light: and there was light.\n" * 60


def _blocks(page, *languages):
    return [found for found in BLOCK.finditer(page.read_text()) if found["language"] in languages]


def _commands(text):
    """The command lines of a block, as words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def _names(pages):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@functools.cache
def _help(*command):
    """What a command's help says."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.main([*command, "--help"]) == 0
    return out.getvalue()


def _check(words):
    """A command exists, and has the flags that are shown."""
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), words
    elif words[0] == "python":
        place = words[2].replace(".", "/") if words[1] == "-m" else words[1].removesuffix(".py")
        assert (ROOT / f"{place}.py").is_file() or (ROOT / place / "__main__.py").is_file(), words
    elif words[0] == "torchrun":
        scripts = [word for word in words if word.endswith(".py")]
        assert all((ROOT / script).is_file() for script in scripts), words
        if "statescan" in words:
            _check(words[words.index("statescan") :])
    elif words[0] == "statescan" and len(words) > 1 and not words[1].startswith("-"):
        assert words[1] in cli.commands(), words
        divided = ("train", "evaluate", "inspect", "classify", "calibrate", "experiment")
        subcommands = [word for word in words[2:3] if not word.startswith("-") and words[1] in divided]
        shown = _help(words[1], *subcommands)
        for flag in (word for word in words if word.startswith("--") and word != "--help"):
            assert re.search(rf"{flag}\b", shown), f"{flag} of {words}"
    else:
        assert words[0] in ("pip", "statescan", "git", "cd"), words


def _shorter(words):
    """A training command made short."""
    kinds = {
        "language": SMALL_TEXT,
        "forecast": SMALL,
        "multimodal": SMALL,
        "reinforcement": SMALL_AGENT,
        "sequence": SMALL_SEQUENCES,
        "lra": SMALL_ARENA,
        "distillation": SMALL_CHAIN,
        "hyperspectral": SMALL_CUBE,
        "records": SMALL_RECORDS,
        "classification": SMALL_IMAGES,
    }
    replaced = kinds.get(words[2] if len(words) > 2 else "", SMALL_TASK)
    if words[1] == "experiment":
        replaced = SMALL_EXPERIMENT
    if words[1] not in ("train", "experiment") or "--resume" in words:
        return words
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = word in replaced
        if not skipping:
            kept.append(word)
    return [*kept, *(part for flag, values in replaced.items() for part in (flag, *values))]


@pytest.mark.parametrize("page", _names(page for page in PAGES if _blocks(page, "console")))
def test_commands_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(BOOK)
    (tmp_path / "other.txt").write_text(BOOK[:400])
    for colour in ("red", "blue"):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (12, 12), colour).save(tmp_path / "photos" / colour / f"{number}.png")
    for block in _blocks(page, "console"):
        for words in _commands(block["text"]):
            _check(words)
            if words[0] == "statescan" and not block["note"]:
                status = cli.main(_shorter(words)[1:])
                written = capsys.readouterr()
                assert status == 0, f"{shlex.join(words)}\n{written.err}"


@pytest.mark.parametrize("page", _names(page for page in PAGES if "`statescan " in page.read_text()))
def test_commands_within_the_text_exist(page):
    for text in re.findall(r"`(statescan [^`]+)`", page.read_text()):
        _check([word for word in text.split() if word not in ("…", "...")])


@pytest.mark.parametrize("page", _names(p for p in PAGES if p.name not in ELSEWHERE and _blocks(p, "python")))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    # Each with names of its own, as a reader copies it; the files it leaves are there for the next.
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(_blocks(page, "python"), 1):
        if block["note"]:
            continue
        exec(compile(block["text"], f"{page.name}, Python block {number}", "exec"), {"__name__": "__main__"})


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_generated_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, wanted in generate.pages().items():
        assert path.read_text() == wanted, f"{path.name}: run `python docs/generate.py`"


def test_the_documentation_builds_without_a_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\" >]+)", page.read_text())
        assert not fetched, f"{page.name} would fetch {fetched}"
