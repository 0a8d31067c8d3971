"""The decoding loop: reads prompts, draws tokens, lets finished sequences leave the batch."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from statescan.checkpoints import check_tokenizer
from statescan.generation._native import CompiledModel, Session
from statescan.generation._prefill import BATCHINGS, Batching, prefill
from statescan.generation._progress import progress_bar
from statescan.generation._prompts import Prompts, Stop, encode_prompts, split_stops, spread_seeds
from statescan.generation._sampling import SamplingConfig, next_tokens
from statescan.generation._session import GenerationState, pad_recent, unpad
from statescan.generation._static_step import WORTHWHILE, StepGraph, graph_reason
from statescan.generation._text import CONTEXT, TextStream, Tokenizer
from statescan.layers import State

if TYPE_CHECKING:
    from statescan.generation._drafts import Draft
    from statescan.generation._long_context import LongContext
    from statescan.generation._speculative import Acceptance

FinishReason = Literal["length", "stop"]


@dataclass(frozen=True)
class Piece:
    """One new token.

    Fields:
        sequence: index of the prompt it continues.
        token: the token.
        text: the text that became certain with it, possibly empty (always, without a tokenizer).
        finish_reason: None while the sequence goes on; ``"stop"`` or ``"length"`` with its last token.
    """

    sequence: int
    token: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt.

    Fields:
        tokens: all new tokens, a stop token included.
        text: the new text up to the stop, None without a tokenizer.
        finish_reason: ``"stop"`` or ``"length"``.
        state: where it can go on, if it was asked for.
    """

    tokens: list[int]
    text: str | None
    finish_reason: FinishReason
    state: GenerationState | None


@dataclass
class _Sequence:
    """What the loop remembers of one running sequence outside the model."""

    index: int
    seed: int
    drawn: int
    remaining: int
    recent: deque[int]
    text: TextStream | None
    length: int = 0  # tokens of its prompt


class Stream(Iterator[Piece]):
    """An iterator of `Piece`, made by `stream`; each step of the model gives one piece a running sequence."""

    def __init__(
        self,
        model: Any,
        sequences: list[_Sequence],
        *,
        prompts: list[list[int]],
        state: State | None,
        seen: Tensor | None,
        vocabulary: int,
        sampling: SamplingConfig,
        stop_tokens: frozenset[int],
        prefill_chunk: int,
        batching: Batching,
        keep_states: bool,
        long_context: LongContext | None = None,
        cuda_graph: bool | None = False,
    ) -> None:
        self._model = model
        self._running = sequences
        self._prompts: list[list[int]] | None = prompts
        self._state = state
        self._session: Session | StepGraph | None = None  # of a compiled model or a CUDA graph, in the state's place
        self._cuda_graph = cuda_graph
        self._seen = seen
        self._vocabulary = vocabulary
        self._sampling = sampling
        self._stop_tokens = stop_tokens
        self._prefill_chunk = prefill_chunk
        self._batching: Batching = batching
        self._keep_states = keep_states
        self._long_context = long_context
        self._last = torch.empty(0, dtype=torch.int64)
        self._leaving: list[int] = []
        self._finished: dict[int, GenerationState] = {}
        self._pieces: deque[Piece] = deque()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        if not self._pieces:
            self._drop_finished()
            if not self._running:
                raise StopIteration
            with torch.inference_mode():
                self._advance()
            self._keep_finished()
        return self._pieces.popleft()

    def state_of(self, sequence: int = 0) -> GenerationState:
        """Where a sequence stands after its latest token, as a value that later steps do not touch.

        A finished sequence's state is there if the stream has one sequence or was made with `keep_states`. In a
        batch the latest token may be one whose piece has not been handed out yet.
        """
        if sequence in self._finished:
            return self._finished[sequence]
        for row, running in enumerate(self._running):
            if running.index == sequence and self._prompts is None:
                return self._snapshot(row)
        if self._prompts is not None:
            raise ValueError("state_of: nothing has been generated yet; take the first piece from the stream")
        raise ValueError(f"state_of: sequence {sequence} is not running; its state is kept only with keep_states=True")

    def _advance(self) -> None:
        """One step for every running sequence."""
        if self._prompts is not None and isinstance(self._model, CompiledModel):
            logits, self._session = self._model.begin(self._prompts, self._state, chunk=self._prefill_chunk)
            self._prompts = self._state = None
        elif self._session is not None:
            logits = self._session.step(self._last)
        elif self._prompts is not None:
            logits, self._state = self._read(self._prompts)
            self._prompts = None
            self._record()
        else:
            with self._filtered(self._running):
                logits, self._state = self._model.step(self._last, self._state)
        self._last = next_tokens(
            logits[:, : self._vocabulary],  # an embedding may be padded with rows that stand for nothing
            self._sampling,
            seeds=[sequence.seed for sequence in self._running],
            counts=[sequence.drawn for sequence in self._running],
            seen=self._seen,
        )
        if self._seen is not None:
            self._seen = self._seen.scatter(1, self._last.unsqueeze(1), True)
        self._leaving = []
        for row, (sequence, token) in enumerate(zip(self._running, self._last.tolist(), strict=True)):
            piece = self._accept(sequence, token)
            self._pieces.append(piece)
            if piece.finish_reason is not None:
                self._leaving.append(row)

    def _read(self, prompts: list[list[int]]) -> tuple[Tensor, State]:
        """Logits after the prompts, and the state; with filters for their lengths, each prompt by itself."""
        options: dict[str, Any] = dict(chunk=self._prefill_chunk, batching=self._batching)
        if self._long_context is None:
            return prefill(self._model, prompts, self._state, **options)
        logits, states = [], []
        for row, (prompt, sequence) in enumerate(zip(prompts, self._running, strict=True)):
            before = None if self._state is None else self._state.select([row])
            with self._long_context.applied(self._model, [sequence.length]):
                found, after = prefill(self._model, [prompt], before, **options)
            logits.append(found)
            states.append(after)
        return torch.cat(logits), State.concatenate(states)

    def _record(self) -> None:
        """Have a CUDA graph go on from here, where that was asked for or is worth it."""
        if self._cuda_graph is False:
            return
        try:
            self._session, self._state = StepGraph(self._model, self._state), None  # type: ignore[arg-type]
        except RuntimeError as error:
            if self._cuda_graph:
                raise
            warnings.warn(
                f"generation goes on without a CUDA graph, which could not be made ({error}); cuda_graph=False makes none",
                RuntimeWarning,
                stacklevel=2,
            )

    def _filtered(self, sequences: Sequence[_Sequence]) -> contextlib.AbstractContextManager[None]:
        """While tokens of these sequences are generated, the filters that were in force for their prompts."""
        if self._long_context is None or not self._long_context.generation:
            return contextlib.nullcontext()
        return self._long_context.applied(self._model, [sequence.length for sequence in sequences])

    def _accept(self, sequence: _Sequence, token: int) -> Piece:
        """Count a new token in, and see whether it ends the sequence."""
        sequence.drawn += not self._sampling.greedy
        sequence.remaining -= 1
        sequence.recent.append(token)
        reason: FinishReason | None = "length" if sequence.remaining == 0 else None
        if token in self._stop_tokens:
            return Piece(sequence.index, token, sequence.text.flush() if sequence.text else "", "stop")
        text = ""
        if sequence.text is not None:
            text = sequence.text.push(token)
            if sequence.text.stopped:
                reason = "stop"
            elif reason == "length":
                text += sequence.text.flush()
        return Piece(sequence.index, token, text, reason)

    def _keep_finished(self) -> None:
        if self._keep_states:
            for row in self._leaving:
                self._finished[self._running[row].index] = self._snapshot(row)

    def _drop_finished(self) -> None:
        """Let the sequences that ended in the last step leave the batch."""
        if not self._leaving:
            return
        gone = set(self._leaving)
        stay = [row for row in range(len(self._running)) if row not in gone]
        self._running = [self._running[row] for row in stay]
        self._leaving = []
        if not stay:
            self._state = self._session = None
            return
        rows = torch.tensor(stay, device=self._last.device)
        with torch.inference_mode():
            if self._session is not None:
                self._session = self._session.select(rows)
            else:
                assert self._state is not None
                self._state = self._state.select(rows)
            self._last = self._last[rows]
            self._seen = None if self._seen is None else self._seen[rows]

    def _snapshot(self, row: int) -> GenerationState:
        sequence = self._running[row]
        held = "" if sequence.text is None else sequence.text.held
        if self._session is not None:
            model = self._session.state([row])
        else:
            assert self._state is not None
            model = self._state.select(torch.tensor([row], device=self._last.device))
        # Cloned outside inference mode, so that the tensors may take part in training later.
        return GenerationState(
            model=model.clone(),
            last=self._last[row : row + 1].clone(),
            seeds=torch.tensor([sequence.seed]),
            drawn=torch.tensor([sequence.drawn]),
            recent=pad_recent(sequence.recent),
            held=torch.tensor([[ord(character) for character in held]], dtype=torch.int64),
            seen=None if self._seen is None else self._seen[row : row + 1].clone(),
        )


def stream(
    model: Any,
    prompts: Prompts | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Stop = None,
    seed: int | Sequence[int] | None = None,
    state: GenerationState | None = None,
    prefill_chunk: int = 2048,
    batching: Batching = "packed",
    keep_states: bool = False,
    draft: Draft | None = None,
    acceptance: Acceptance = "matching",
    long_context: LongContext | None = None,
    cuda_graph: bool | None = None,
) -> Stream:
    """Continue prompts, handing out each token as it comes; see `generate` for the arguments.

    Text comes in whole characters and never contains the beginning of what turns out to be a stop string. Nothing
    is computed before the first piece is taken.

    >>> for piece in stream(model, "Once upon a time", tokenizer=tokenizer):
    ...     print(piece.text, end="", flush=True)
    """
    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise TypeError(f"max_new_tokens: expected an int, got {max_new_tokens!r}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    if isinstance(model, CompiledModel) and (prefill_chunk < 1 or batching not in BATCHINGS):
        prefill(model, [[0]], chunk=prefill_chunk, batching=batching)  # which says what is wrong
    if isinstance(model, CompiledModel):
        for name, given in (("draft", draft), ("long_context", long_context)):
            if given is not None:
                raise ValueError(
                    f"{name}: the native engine takes none; give the model itself instead of the compiled one"
                )
    if prompts is None and state is None:
        raise ValueError("prompts: give prompts, or the state of a continuation to go on from")
    vocabulary = model.config.vocab_size
    if tokenizer is not None:
        check_tokenizer(tokenizer, model)
        vocabulary = min(model.config.padded_vocab_size, tokenizer.vocab_size)
        end = getattr(tokenizer, "end_of_text", None)
        stop = end if stop is None else stop
    stop_strings, stop_tokens = split_stops(stop, tokenizer, vocabulary)
    encoded: list[list[int]] = [[] for _ in range(len(state))] if state is not None else []
    if prompts is not None:
        encoded = encode_prompts(prompts, tokenizer, vocabulary)
    if state is not None and len(state) != len(encoded):
        raise ValueError(f"state: it holds {len(state)} sequences for {len(encoded)} prompts")
    if state is not None:
        _check_state(model, state)
    device = next(model.parameters()).device
    seeds, drawn, recent, held = _beginnings(encoded, state, seed, continued=prompts is None)
    if state is not None:
        encoded = [[token, *tokens] for token, tokens in zip(state.last.tolist(), encoded, strict=True)]
    sequences = []
    for index in range(len(encoded)):
        text = None
        if tokenizer is not None:
            text = TextStream(tokenizer, stop=stop_strings, context=recent[index], held=held[index])
        sequences.append(
            _Sequence(
                index,
                seeds[index],
                drawn[index],
                max_new_tokens,
                deque(recent[index], CONTEXT),
                text,
                len(encoded[index]),
            )
        )
    options: dict[str, Any] = dict(
        prompts=encoded,
        state=None if state is None else state.model.to(device),
        seen=_seen(encoded, state, vocabulary, device) if repetition_penalty != 1 else None,
        vocabulary=vocabulary,
        sampling=sampling,
        stop_tokens=stop_tokens,
        prefill_chunk=prefill_chunk,
        batching=batching,
        keep_states=keep_states or len(encoded) == 1,
        long_context=long_context,
    )
    if cuda_graph is not False:
        reason = _without_graph(model, draft, long_context, max_new_tokens, insist=cuda_graph is True)
        if reason and cuda_graph:
            raise ValueError(f"cuda_graph: there can be none here: {reason}")
        cuda_graph = False if reason else cuda_graph
    if draft is None:
        return Stream(model, sequences, cuda_graph=cuda_graph, **options)
    from statescan.generation._speculative import SpeculativeStream

    return SpeculativeStream(model, sequences, draft=draft, acceptance=acceptance, **options)


def generate(
    model: Any,
    prompts: Prompts | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Stop = None,
    seed: int | Sequence[int] | None = None,
    state: GenerationState | None = None,
    prefill_chunk: int = 2048,
    batching: Batching = "packed",
    keep_states: bool = False,
    draft: Draft | None = None,
    acceptance: Acceptance = "matching",
    long_context: LongContext | None = None,
    cuda_graph: bool | None = None,
    progress: bool = False,
) -> list[Generation]:
    """Continue one or several prompts; each gets what it would get alone.

    Arguments:
        model: a language model (``forward(tokens, state)``, ``step(tokens, state)``), or one that
            `compile_for_generation` has packed for the native engine.
        prompts: a text, a sequence of tokens, or a list of either, of any lengths. None goes on from `state`.
        tokenizer: has ``encode(text)``, ``decode(tokens)`` and ``vocab_size``; needed for text in or out and for stop
            strings. Tokens that it does not have are never drawn.
        max_new_tokens: the most tokens a prompt gets.
        temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingConfig`; temperature 0 is greedy.
        stop: strings or token ids that end a continuation. A string may span tokens; it is not part of the text. None is
            the tokenizer's ``end_of_text`` token, where it has one; an empty list is nothing.
        seed: prompt i uses ``seed + i``, or a seed for each. None takes one from torch's global generator.
        state: what earlier continuations left (`Generation.state`, `Stream.state_of`), one sequence a prompt. Without
            prompts and with the same settings, what follows is what would have followed.
        prefill_chunk: tokens of prompts read at a time; bounds the memory of a long prompt.
        batching: how prompts of unequal lengths are read, ``"packed"`` or ``"left"`` (padded).
        keep_states: hand out where each continuation can go on.
        draft: guesses tokens for the model to verify, several a pass (`NGramDraft`, `ModelDraft`): what comes out is
            what would come out without, sooner if the guesses are good.
        acceptance: ``matching`` takes a guess that is the very token the model draws: the same tokens as without a
            draft, for any draft. ``rounds`` accepts guesses of a draft that draws them by the ratio of probabilities:
            other tokens, of the same distribution, more of them a pass.
        long_context: have channels of long memory pass unimportant tokens by, in prompts far longer than the model was
            trained on (`LongContext`); what is read now counts as the prompt.
        cuda_graph: decode by one launch a token (`StepGraph`). None does so by itself for a model of Mamba or Mamba-2 layers
            on a CUDA device that is to make more than a few tokens; False never does; True insists, and says why it cannot.
        progress: show a progress bar, if the error output is a terminal.

    Returns one `Generation` a prompt, in order.
    """
    pieces = stream(
        model,
        prompts,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
        state=state,
        prefill_chunk=prefill_chunk,
        batching=batching,
        keep_states=keep_states,
        draft=draft,
        acceptance=acceptance,
        long_context=long_context,
        cuda_graph=cuda_graph,
    )
    count = len(pieces._running)
    tokens: list[list[int]] = [[] for _ in range(count)]
    texts: list[list[str]] = [[] for _ in range(count)]
    reasons: dict[int, FinishReason] = {}
    with progress_bar("generating", max_new_tokens * count, unit="tokens", shown=progress) as advance:
        for piece in pieces:
            tokens[piece.sequence].append(piece.token)
            texts[piece.sequence].append(piece.text)
            advance(1)
            if piece.finish_reason is not None:
                reasons[piece.sequence] = piece.finish_reason
                advance(max_new_tokens - len(tokens[piece.sequence]))
    return [
        Generation(
            tokens=tokens[index],
            text=None if tokenizer is None else "".join(texts[index]),
            finish_reason=reasons[index],
            state=pieces.state_of(index) if keep_states else None,
        )
        for index in range(count)
    ]


def _without_graph(
    model: Any, draft: Draft | None, long_context: LongContext | None, tokens: int, *, insist: bool
) -> str:
    """Why tokens are decoded without a CUDA graph; empty where one is made."""
    if isinstance(model, CompiledModel):
        return "the model is compiled for the CPU"
    if draft is not None:
        return "a draft is given"
    if long_context is not None:
        return "long_context filters tokens"
    if tokens <= WORTHWHILE and not insist:
        return "there are few tokens to make"
    return graph_reason(model)


def _check_state(model: Any, state: GenerationState) -> None:
    """Refuse the state of another model; an axis that is empty at the beginning, a cache's, may have any length."""
    expected = dict(model.initial_state(len(state)).tensors())
    given = dict(state.model.tensors())
    for name in sorted(expected.keys() ^ given.keys()):
        known = "the model has none" if name in given else "it has none"
        raise ValueError(f"state: it is another model's ({name}: {known})")
    for name, tensor in expected.items():
        sizes = zip(tensor.shape, given[name].shape, strict=False)
        if tensor.ndim != given[name].ndim or any(size not in (0, actual) for size, actual in sizes):
            shapes = f"expected {tuple(tensor.shape)}, got {tuple(given[name].shape)}"
            raise ValueError(f"state: it is another model's ({name}: {shapes})")


def _beginnings(
    prompts: list[list[int]],
    state: GenerationState | None,
    seed: int | Sequence[int] | None,
    *,
    continued: bool,
) -> tuple[list[int], list[int], list[list[int]], list[str]]:
    """Seeds, random numbers used, last tokens and held text of each sequence before it goes on."""
    drawn = [0] * len(prompts)
    if state is None or seed is not None:
        seeds = spread_seeds(seed, len(prompts))
    else:
        seeds, drawn = state.seeds.tolist(), state.drawn.tolist()
    before = [[] for _ in prompts] if state is None else [unpad(row) for row in state.recent]
    recent = [[*old, *prompt][-CONTEXT:] for old, prompt in zip(before, prompts, strict=True)]
    held = [""] * len(prompts)
    if state is not None and continued:
        held = ["".join(map(chr, unpad(row))) for row in state.held]
    return seeds, drawn, recent, held


def _seen(prompts: list[list[int]], state: GenerationState | None, vocabulary: int, device: torch.device) -> Tensor:
    """Which tokens occurred so far, (sequences, vocabulary)."""
    if state is not None and state.seen is None:
        raise ValueError(
            "repetition_penalty: the state was made without one and does not know which tokens occurred; "
            "use the penalty from the beginning"
        )
    seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt)] = True
    return (seen if state is None or state.seen is None else seen | state.seen.cpu()).to(device)
