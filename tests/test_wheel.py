"""The wheel as users get it: built in ordinary isolation, installed beside a torch that is already there, with and without
a compiler."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, statescan
    from statescan.kernels import cpu
    model = statescan.create_model("mamba_tiny", dim=32, depth=2)
    logits, state = model(torch.arange(20)[None])
    logits.square().mean().backward()
    logits, state = model(torch.arange(20)[None])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    hidden = torch.randn(1, 9, 8)
    chosen = statescan.ops.explain("causal_conv1d", hidden, torch.randn(8, 4)).splitlines()
print(cpu.available(), len(caught), *(str(w.message) for w in caught))
print(*chosen, sep="\\n")
print(statescan.__file__)
"""


def _environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "STATESCAN", "TRITON"))}
    return kept | more


def _build(folder: Path, **environment: str) -> Path:
    """A source distribution, and the wheel made from it."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT],
        capture_output=True,
        text=True,
        env=_environment(**environment),
        timeout=540,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def _install_and_use(wheel: Path, folder: Path) -> list[str]:
    """In an environment of its own that sees this one's packages, torch among them, but not this project."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    # A path of its own, not site.addsitedir: an editable install of this project there must not be seen.
    (site / "torch_that_is_there.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [python, "-I", "-c", _USE], check=True, capture_output=True, text=True, env=_environment(), timeout=300
    )
    lines = done.stdout.splitlines()
    assert str(folder) in lines[-1], "the installed wheel is what runs"
    return lines


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("wheel"))


def test_one_wheel_serves_every_python(wheel):
    _, _, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    names = zipfile.ZipFile(wheel).namelist()
    assert "statescan/kernels/libstatescan_cpu.so" in names
    assert "statescan/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "csrc", "benchmarks", "examples", "docs")]
    assert sum(name.endswith((".so", ".dylib", ".dll")) for name in names) == 1


def test_the_source_distribution_is_whole(wheel):
    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"csrc/common.h", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "Makefile"} <= names
    assert {"tests/test_wheel.py", "examples/demo.py", "docs/index.md"} <= names
    assert not [n for n in names if n.startswith(("build/", ".venv", "runs/", ".git/")) or n.endswith((".so", ".pyc"))]


def test_it_runs_on_the_kernels(wheel, tmp_path):
    available, *rest = _install_and_use(wheel, tmp_path / "venv")
    assert available == "True 0"
    assert rest[0] == "cpu: used"


def test_without_a_compiler_it_runs_on_the_references_with_one_warning(tmp_path):
    wheel = _build(tmp_path / "dist", CXX="/no/compiler", CC="/no/compiler")
    assert not [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")]
    available, *rest = _install_and_use(wheel, tmp_path / "venv")
    assert available.startswith(
        "False 1 statescan runs on its slow references: the compiled CPU library is not installed"
    )
    assert "install a C++ compiler" in available
    assert rest[0].startswith("cpu: no, the compiled CPU library is not installed")
