"""Shell completion: prints a script for bash, zsh or fish."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro


def run(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print completion for a shell, for instance `eval "$(statescan completion bash)"`.

    Args:
        shell: which one.
    """
    import importlib

    from statescan.cli import commands

    words: dict[str, list[str]] = {}
    for name in commands():
        module = importlib.import_module(f"statescan.cli.{name.replace('-', '_')}")
        words[name] = list(getattr(module, "COMMANDS", {}))
    top = " ".join(words)
    nested = {name: " ".join(subs) for name, subs in words.items() if subs}
    if shell == "fish":
        print(f'complete -c statescan -n "__fish_use_subcommand" -a "{top}"')
        for name, subs in nested.items():
            print(f'complete -c statescan -n "__fish_seen_subcommand_from {name}" -a "{subs}"')
        return
    cases = "\n".join(f'      {name}) words="{subs}" ;;' for name, subs in nested.items())
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(
        f"""_statescan() {{
  local words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{top}"
  elif [ "$COMP_CWORD" -eq 2 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words --help" -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o filenames -F _statescan statescan"""
    )
