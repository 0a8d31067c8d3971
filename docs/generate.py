"""Write the parts of README.md and of these pages that are made from the code: `python docs/generate.py`."""

from __future__ import annotations

import re
from pathlib import Path

from statescan import inspect, models
from statescan.models._vision import VisionConfig

ROOT = Path(__file__).parents[1]
#: Benchmarks whose tables stand on the page of performance.
MEASURED = (
    "selective_scan",
    "operators",
    "structured_speed",
    "generation_step",
    "decode_engine",
    "contexts",
    "training_step",
    "images",
)


def systems_table(folder: str) -> str:
    """The table of systems; links lead to pages in `folder`."""
    lines = ["| system | paper | verified |", "|---|---|---|"]
    for system in models.systems():
        verified = "; ".join(system.verified)
        lines.append(f"| [`{system.slug}`]({folder}{system.slug}.md) | {system.paper} | {verified} |")
    return "\n".join(lines)


def images_table(*families: str) -> str:
    """Named image backbones of these families, for one image of the size of their training."""
    lines = ["| model | image | parameters | multiply-adds | scan operations |", "|---|---:|---:|---:|---:|"]
    named = [models.model_info(name) for name in models.list_models()]
    rows = [(inspect.image_cost(info.name), info) for info in named if info.family in families]
    for cost, info in sorted(rows, key=lambda row: (families.index(row[1].family), row[0].multiply_adds)):
        height, width = info.config.image_shape
        lines.append(
            f"| `{info.name}` | {height} x {width} | {cost.parameters:,} | {cost.multiply_adds / 1e6:,.0f} M "
            f"| {cost.scan_operations / 1e6:,.0f} M |"
        )
    return "\n".join(lines)


def models_table(*families: str) -> str:
    """Named models of these families."""
    if issubclass(models.family(families[0]).config, VisionConfig):
        return images_table(*families)
    lines = ["| model | dim | depth | parameters |", "|---|---:|---:|---:|"]
    named = [models.model_info(name) for name in models.list_models()]
    rows = [(inspect.count_parameters(info.name), info) for info in named if info.family in families]
    for parameters, info in sorted(rows, key=lambda row: (families.index(row[1].family), row[0])):
        width, depth = (
            ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            for value in inspect.width_and_depth(info.config)
        )
        lines.append(f"| `{info.name}` | {width} | {depth} | {parameters:,} |")
    return "\n".join(lines)


def results(name: str) -> str:
    """The tables that a benchmark left, one heading lower than they have it."""
    text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8")
    body = text.split("\n", 2)[2]
    return re.sub(r"^#", "##", body, flags=re.MULTILINE).strip()


def pages() -> dict[Path, str]:
    """Pages with parts made from the code, as they should be."""
    parts = {
        "README.md": {"systems": systems_table("docs/systems/")},
        "docs/systems/index.md": {"systems": systems_table("")},
        "docs/performance.md": {name: results(name) for name in MEASURED},
    }
    for system in models.systems():
        if system.families:
            parts[f"docs/systems/{system.slug}.md"] = {"models": models_table(*system.families)}
    made = {}
    for name, texts in parts.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        for mark, text in texts.items():
            pattern = rf"<!-- {mark} -->\n.*?<!-- /{mark} -->"
            page, found = re.subn(
                pattern, lambda _, m=mark, t=text: f"<!-- {m} -->\n{t}\n<!-- /{m} -->", page, flags=re.DOTALL
            )
            if found != 1:
                raise ValueError(f"{name}: expected one <!-- {mark} --> … <!-- /{mark} -->, found {found}")
        made[ROOT / name] = page
    return made


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, encoding="utf-8")
        print(path.relative_to(ROOT))
