"""`statescan inspect memory`: what a language model still holds of earlier tokens, and its late layers of early ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro


def memory(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    *,
    out: Path,
    text: Path | None = None,
    length: int = 256,
    sequences: int = 64,
    layers: int = 9,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Draw a language model's memory fidelity: over distance in tokens, and from layer to layer.

    A ridge regression reads the embedding of an earlier token back from a layer, and a layer from a later one; half of the
    sequences are fitted to, the cosine is taken on the other half.

    Examples:

      statescan inspect memory mamba_tiny --out memory.png
      statescan inspect memory runs/book --text book.txt --out memory.png

    Args:
        model: the folder of a checkpoint, or a name.
        out: the picture; its suffix says the format.
        text: read from a file; tokens drawn evenly from the vocabulary unless given, of which none foretells another.
        length: tokens of a sequence.
        sequences: how many, spread over the text.
        layers: at most so many are looked at.
        seed: of drawn tokens, and of random weights.
        json: print data instead of a table.
    """
    import torch

    from statescan import inspect
    from statescan.cli import _print
    from statescan.cli._encoders import model_of, tell_of_random_weights

    for name, value in (("length", length), ("sequences", sequences), ("layers", layers)):
        if value < 2:
            raise ValueError(f"{name}: at least 2, got {value}")
    found_model, fresh = model_of(model, seed=seed)
    if not inspect.reads_tokens(found_model):
        raise ValueError(f"MODEL: {model!r} is no language model; `statescan models` lists all")
    if fresh:
        tell_of_random_weights(model)
    if text is None:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(found_model.config.vocab_size, (sequences, length), generator=generator)
    else:
        tokens = _windows(model, text, sequences, length)
    found = inspect.memory_fidelity(found_model, tokens, most_layers=layers, seed=seed)
    read = "random tokens" if text is None else text.name
    inspect.draw_memory_fidelity(out, found, f"{Path(model).name}{', random weights' if fresh else ''}: {read}")
    if json:
        _print.as_json(
            {
                "distances": found.distances,
                "layers": found.layers,
                "tokens": found.tokens.tolist(),
                "shuffled": found.shuffled.tolist(),
                "etmf": found.etmf,
                "eclmf": found.eclmf,
            }
        )
        return
    rows: list[tuple[Any, ...]] = [
        (f"{distance:,}", f"{value:.3f}", f"{chance:.3f}")
        for (distance, value), chance in zip(found.etmf.items(), found.shuffled.tolist(), strict=True)
    ]
    _print.table(f"{model}: tokens read back from the last block", ("distance", "ETMF", "shuffled"), rows)
    gaps = [(str(gap), f"{value:.3f}") for gap, value in found.eclmf.items()]
    _print.table(f"{model}: layers read back from later ones", ("blocks between", "ECLMF"), gaps)
    print(out)


def _windows(model: str, text: Path, sequences: int, length: int) -> Any:
    """Places of a text, evenly spread, none overlapping the next: (sequences, length)."""
    import torch

    from statescan import checkpoints

    if not text.is_file():
        raise FileNotFoundError(f"text: no file {str(text)!r}")
    tokenizer = checkpoints.load_tokenizer(model if Path(model).exists() else "bytes")
    tokens = torch.tensor(list(tokenizer.encode(text.read_text(encoding="utf-8"))))
    if len(tokens) < sequences * length:
        raise ValueError(
            f"text: {len(tokens):,} tokens, but {sequences} sequences of {length} were asked for; see --sequences, --length"
        )
    step = (len(tokens) - length) // max(1, sequences - 1)
    return torch.stack([tokens[number * step : number * step + length] for number in range(sequences)])
