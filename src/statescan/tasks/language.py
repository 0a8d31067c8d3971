"""Training a language model on text.

A run is a pure function of its settings: weights, the order of the data and every other random choice depend on the
seed and the step alone. So a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from statescan import data
from statescan.tasks._run_folder import RunFolder
from statescan.tasks._settings import TrainingSettings, build, demand

if TYPE_CHECKING:
    from statescan.tasks._fit import MakeBatches, TrainingResult
    from statescan.tasks._module import Sums

#: Sources of more bytes than this are put into files of tokens rather than into memory.
_LARGE = 1 << 28


@dataclass(frozen=True)
class LanguageTraining(TrainingSettings):
    """Train a language model on text.

    Example: statescan train language --data book.txt --model mamba_tiny --steps 1000 --out runs/book
    """

    #: Files, folders, glob patterns, or datasets:NAME?config=...&split=...&column=...
    data: tuple[str, ...] = ()
    #: Which files of a folder.
    pattern: str = "**/*"
    #: Text that stands between two documents of a file.
    separator: str | None = None
    #: Held-out text, named like data; none: the last part of the data.
    validation: tuple[str, ...] = ()
    #: That part, as a fraction.
    validation_fraction: float = 0.05
    #: Tokens of the held-out text to use, at most.
    validation_tokens: int = 1_000_000
    #: bytes, or a tokenizer.json or a folder that holds one; none: that of init_from, or bytes.
    tokenizer: str | None = None
    #: Id of a token to put after each document.
    end_token: int | None = None
    #: Tokens of a sequence.
    length: int = 256
    #: Documents end where they end (the state is reset, the next one's beginning is not asked), or are joined.
    documents: Literal["bounded", "joined"] = "bounded"
    #: Hand the state from batch to batch: truncated back-propagation through long documents.
    carry_state: bool = False
    #: Folder for files of tokens; text of more than 256 MB goes there in any case, by default into the run's folder.
    cache: Path | None = None
    #: Begin with the weights of a model: its folder, or its name on the hub.
    init_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("length", "validation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected between 0 and 1, got {self.validation_fraction}")
        if self.init_from is not None and self.set:
            raise ValueError("set: a model that init_from names has its own config; leave one of the two out")


def train_language(settings: LanguageTraining) -> TrainingResult:
    """Train a language model on text and leave it, its metrics and their picture in the folder ``settings.out``.

    Raises:
        FileNotFoundError: for text that is not there.
        ValueError: for text that is none, or too little; for a tokenizer that does not fit the model; for a folder that
            cannot be written or that holds another run.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    tokenizer = tokenizer_of(settings)
    text, held_out = streams_of(settings, tokenizer)
    batches, validation = token_batches(settings, text, held_out)
    model = model_of(settings, tokenizer)
    if getattr(model, "reads_prompts_as_prefix", False):
        raise ValueError(
            "bidirectional_prefix: text alone marks no prefix, so that the model would never learn to read its prompts; "
            "leave it out, or train on objectives"
        )
    bytes_per_token = _spelled(held_out, tokenizer) / len(held_out)

    def describe(sums: Sums) -> dict[str, float]:
        return {
            "validation_loss": sums.mean_loss,
            "validation_perplexity": math.exp(min(sums.mean_loss, 700.0)),
            "validation_bits_per_byte": sums.mean_loss / math.log(2) / bytes_per_token,
        }

    from statescan.tasks._fit import Objective, fit
    from statescan.tasks._module import next_token

    objective = Objective(
        batches,
        validation,
        targets=settings.length,
        columns=("validation_loss", "validation_perplexity", "validation_bits_per_byte"),
        describe=describe,
        measure=next_token(count_correct=False, carry_state=settings.carry_state),
        carry_state=settings.carry_state,
    )
    return fit(model, settings, folder, objective, tokenizer=tokenizer)


def token_batches(
    settings: LanguageTraining, text: data.TokenStream, held_out: data.TokenStream
) -> tuple[MakeBatches, MakeBatches]:
    """What makes the batches to learn from, and those to validate with."""
    batch_size = settings.batch_size * settings.world_size
    order: data.ContinuedOrder | data.ShuffledOrder
    held_out_order: data.ContinuedOrder | data.SequentialOrder
    if settings.carry_state:
        order = data.ContinuedOrder(len(text), settings.length, batch_size)
        held_out_order = data.ContinuedOrder(len(held_out), settings.length, batch_size, repeat=False)
    else:
        order = data.ShuffledOrder(len(text), settings.length, batch_size, seed=settings.seed)
        held_out_order = data.SequentialOrder(len(held_out), settings.length, batch_size)
    resets = settings.documents == "bounded"

    def batches(first: int, rank: int, world: int) -> data.TokenBatches:
        return data.TokenBatches(
            text, order, length=settings.length, resets=resets, rank=rank, world=world, first=first
        )

    def validation(first: int, rank: int, world: int) -> data.TokenBatches:
        return data.TokenBatches(
            held_out,
            held_out_order,
            length=settings.length,
            resets=resets,
            rank=rank,
            world=world,
            last=held_out_order.steps,
        )

    return batches, validation


def tokenizer_of(settings: LanguageTraining) -> Any:
    """The tokenizer that was named, that of the model to begin with, or bytes."""
    from statescan.checkpoints import load_tokenizer

    beside = settings.init_from if settings.init_from and Path(settings.init_from).is_dir() else "bytes"
    return load_tokenizer(settings.tokenizer or beside)


def model_of(settings: LanguageTraining, tokenizer: Any) -> Any:
    """The model to begin with, or a new one."""
    if settings.init_from is None:
        demand(settings, "padded_vocab_size", "language model", "mamba_tiny")
        return build(settings, vocab_size=tokenizer.vocab_size)
    from statescan.checkpoints import check_tokenizer, load

    model = load(settings.init_from)
    check_tokenizer(tokenizer, model)
    return model.train()


def streams_of(settings: LanguageTraining, tokenizer: Any) -> tuple[data.TokenStream, data.TokenStream]:
    """Text to learn from and text to validate with."""
    text = _stream(settings, settings.data, tokenizer)
    if settings.validation:
        held_out = _stream(settings, settings.validation, tokenizer)
    else:
        text, held_out = text.split(len(text) - max(2, int(len(text) * settings.validation_fraction)))
    held_out, _ = held_out.split(min(len(held_out), settings.validation_tokens + 1))
    if len(held_out) < 2:
        raise ValueError("validation: expected at least two tokens of held-out text")
    return text, held_out


def _stream(settings: LanguageTraining, sources: tuple[str, ...], tokenizer: Any) -> data.TokenStream:
    pieces = data.read_text(sources, pattern=settings.pattern, separator=settings.separator)
    made_of: dict[str, Any] = {
        "encode": None if _bytes(tokenizer) else tokenizer.encode,
        "vocab_size": tokenizer.vocab_size,
        "end_token": settings.end_token,
    }
    size = sum(path.stat().st_size for path in data.text_files(sources, pattern=settings.pattern))
    if settings.cache is None and size <= _LARGE:
        stream = data.tokenize(pieces, **made_of)
    else:
        name = data.fingerprint(
            sources,
            pattern=settings.pattern,
            separator=settings.separator,
            tokenizer=settings.tokenizer,
            end_token=settings.end_token,
        )
        place = Path(settings.cache or settings.out / "tokens") / name
        stream = data.write_tokens(place, pieces, **made_of)
    if len(stream) < 4:
        names = ", ".join(repr(os.fspath(source)) for source in sources)
        raise ValueError(f"data: {names} holds only {len(stream)} tokens; there is nothing to learn")
    return stream


def _spelled(stream: data.TokenStream, tokenizer: Any, chunk: int = 1 << 16) -> int:
    """Bytes that the tokens stand for."""
    if _bytes(tokenizer):
        return len(stream)
    parts = np.array_split(np.asarray(stream.tokens), max(1, len(stream) // chunk))
    return sum(len(tokenizer.decode(part.tolist()).encode()) for part in parts)


def _bytes(tokenizer: Any) -> bool:
    """Whether tokens are bytes, which are faster read than encoded."""
    from statescan.checkpoints import ByteTokenizer

    return isinstance(tokenizer, ByteTokenizer)
