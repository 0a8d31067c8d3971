"""Shell completion: prints a script for bash, zsh or fish."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from typing import Annotated, Any, Literal

import tyro

_BASH = """_statescan() {{
  local words="" files=-f current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    files="" words="{commands}"
  elif [ "$before" = "--model" ]; then
    files="" words="{models}"
  else
    case "$COMP_CWORD ${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen $files -W "$words" -- "$current"))
}}
complete -o filenames -F _statescan statescan"""


def run(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print completion for a shell.

    Examples:

      eval "$(statescan completion bash)"

      statescan completion bash > ~/.local/share/bash-completion/completions/statescan

      statescan completion fish > ~/.config/fish/completions/statescan.fish

    Args:
        shell: which one.
    """
    from statescan.models import list_models

    flags = _flags()
    print((_fish if shell == "fish" else _bash)(flags, list_models(), zsh=shell == "zsh"))


def _flags() -> dict[tuple[str, ...], list[str]]:
    """The flags of every command and sub-command, as its help shows them."""
    from statescan.cli import _parse, commands

    found: dict[tuple[str, ...], list[str]] = {}
    for name in commands():
        module = importlib.import_module(f"statescan.cli.{name.replace('-', '_')}")
        table: dict[str, Any] = getattr(module, "COMMANDS", {})
        for path, function in {(name, sub): f for sub, f in table.items()}.items() or [((name,), module.run)]:
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                _parse.parse(function, "statescan", ["--help"])
            lines = re.findall(r"^\W*(?:-h, )?(--.*)$", text.getvalue(), re.MULTILINE)
            shown = (flag for line in lines for flag in re.findall(r"--[a-z][\w-]*", line.split("  ")[0]))
            found[path] = list(dict.fromkeys(shown))
    return found


def _bash(flags: dict[tuple[str, ...], list[str]], models: list[str], *, zsh: bool) -> str:
    cases = []
    for name in dict.fromkeys(path[0] for path in flags):
        subcommands = [path[1] for path in flags if path[0] == name and len(path) == 2]
        if subcommands:
            cases.append(f'      "2 {name} "*) files="" words="{" ".join(subcommands)} --help" ;;')
            cases += [f'      *" {name} {sub}") words="{" ".join(flags[name, sub])}" ;;' for sub in subcommands]
        else:
            words = flags[name,] + (models if name == "info" else [])
            cases.append(f'      *" {name} "*) words="{" ".join(words)}" ;;')
    commands = " ".join(dict.fromkeys(path[0] for path in flags))
    script = _BASH.format(commands=f"{commands} --help", models=" ".join(models), cases="\n".join(cases))
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def _fish(flags: dict[tuple[str, ...], list[str]], models: list[str], *, zsh: bool) -> str:
    seen = "__fish_seen_subcommand_from"
    names = dict.fromkeys(path[0] for path in flags)
    lines = [f"complete -c statescan -n __fish_use_subcommand -a {name}" for name in names]
    for path, words in flags.items():
        if len(path) == 2:
            lines.append(f'complete -c statescan -n "{seen} {path[0]}; and not {seen} {path[1]}" -a {path[1]}')
        condition = "; and ".join(f"{seen} {word}" for word in path)
        lines += [f'complete -c statescan -n "{condition}" -l {flag.removeprefix("--")}' for flag in words]
    lines.append(f'complete -c statescan -n "{seen} info" -a "{" ".join(models)}"')
    lines.append(f'complete -c statescan -n "{seen} train" -l model -a "{" ".join(models)}"')
    return "\n".join(lines)
