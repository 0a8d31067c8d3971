"""The house rules that a machine can check."""

import subprocess
import sys
from pathlib import Path

import statescan
from statescan import models

ROOT = Path(__file__).parents[1]


def _modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split())


def test_importing_the_library_is_light():
    loaded = _modules_after("import statescan")
    heavy = {
        "torch",
        "transformers",
        "triton",
        "pytorch_lightning",
        "matplotlib",
        "datasets",
        "lm_eval",
        "statescan.models",
    }
    assert not loaded & heavy


def test_operators_and_models_bring_no_heavy_library():
    loaded = _modules_after("import statescan; statescan.create_model('mamba_tiny', dim=16, depth=1)")
    assert not loaded & {"transformers", "triton", "pytorch_lightning", "matplotlib", "datasets", "lm_eval", "tyro"}
    assert "statescan.models.mamba2" not in loaded
    assert "statescan.models.zamba2" not in loaded


def test_every_public_name_is_there():
    for name in statescan.__all__:
        assert getattr(statescan, name) is not None


def test_no_source_file_is_long():
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("csrc/*"), *ROOT.glob("tests/**/*.py")]
    long = {str(f.relative_to(ROOT)): n for f in files if (n := len(f.read_text().splitlines())) > 650}
    assert not long


def test_the_readme_lists_the_systems_that_work():
    readme = (ROOT / "README.md").read_text()
    for system in models.systems():
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| [`{system.slug}`]")]
        for statement in system.verified:
            assert statement in row
        assert (ROOT / "docs" / "systems" / f"{system.slug}.md").is_file()


def test_every_dependency_is_justified():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    page = (ROOT / "docs" / "dependencies.md").read_text()
    named = list(project["project"]["dependencies"])
    for group in project["project"]["optional-dependencies"].values():
        named += group
    for group in project["dependency-groups"].values():
        named += [entry for entry in group if isinstance(entry, str)]
    for requirement in named:
        name = requirement.split(";")[0].split("[")[0]
        for sign in "<>=~! ":
            name = name.split(sign)[0]
        assert f"`{name}`" in page, f"{name} is not in docs/dependencies.md"


def test_the_clock_of_this_suite_is_not_an_assertion():
    """A timing is a benchmark, never a test: no test file compares clocks."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name == Path(__file__).name:
            continue
        text = path.read_text()
        assert "perf_counter" not in text, path
