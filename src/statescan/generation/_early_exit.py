"""Decoding that stops a token at an intermediate layer once a classifier there is sure of the next one.

Nogales, Gambella and Roveri 2025, "DYNAMAX: Dynamic computing for Transformers and Mamba based architectures", arXiv
2504.20922; the linear exits, the learned confidence and the propagated states are those of Schuster et al. 2022 (CALM),
arXiv 2207.07061.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from statescan.generation._exit_heads import ExitConfig, ExitHead, check_thresholds
from statescan.layers import ResidualStack, State
from statescan.layers._attention import AttentionState
from statescan.models._model import Model

#: The file of trained exits, beside the checkpoint.
EXITS_FILE = "exits.safetensors"
_FORMAT = "statescan.exits"


@dataclass
class ExitCounts:
    """What decoding cost; prompts, which no token leaves early, are not counted.

    Fields:
        depth: blocks of the model.
        tokens: that were decoded.
        blocks: that were computed, over all tokens.
        advanced: blocks of which the state alone was.
        exits: classifiers that were evaluated.
        layers: after how many blocks a token was done, to how many tokens that were.
    """

    depth: int
    tokens: int = 0
    blocks: int = 0
    advanced: int = 0
    exits: int = 0
    layers: dict[int, int] = field(default_factory=dict)

    @property
    def saved(self) -> float:
        """The share of blocks that was not computed; advanced ones count as not computed."""
        whole = self.tokens * self.depth
        return 1 - self.blocks / whole if whole else 0.0


class EarlyExit(nn.Module):
    """A language model with exits: in `generate` and `stream` it stands in the model's place.

    `forward` reads prompts, through all blocks; `step` decodes, each sequence of the batch as far as it needs. The
    state holds the model's (``model``), the exits' (``exits``), and ``layers`` (batch,), blocks of the last token.

    Arguments:
        model: a language model whose stack is a `layers.ResidualStack`.
        config: an `ExitConfig`.

    Raises:
        TypeError: the model is none of these.
        ValueError: an exit beyond the model's last block.
    """

    def __init__(self, model: Any, config: ExitConfig):
        super().__init__()
        if not isinstance(getattr(model, "stack", None), ResidualStack):
            raise TypeError(
                f"model: early exits need a language model of residual blocks, got {type(model).__name__}; "
                "models whose blocks share weights or read more than the residual stream have none"
            )
        if getattr(model, "reads_prompts_as_prefix", False):
            raise ValueError("model: early exits read prompts forwards, and this model reads them in both directions")
        depth = len(model.stack.blocks)
        if config.layers[-1] >= depth:
            raise ValueError(f"layers: an exit after block {config.layers[-1]} of {depth}; the last can be {depth - 1}")
        self.model = model
        self.exits = config
        self.heads = nn.ModuleList(ExitHead(model, config) for _ in config.layers)
        self.thresholds = config.thresholds
        self.counts = ExitCounts(depth)

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def depth(self) -> int:
        """Blocks of the model."""
        return self.counts.depth

    @property
    def thresholds(self) -> tuple[float, ...]:
        """How sure an exit has to be, one number an exit; may be set to one number, or one an exit."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, values: float | Sequence[float]) -> None:
        given = (float(values),) if isinstance(values, (int, float)) else tuple(map(float, values))
        check_thresholds(given, len(self.heads))
        self._thresholds = given * len(self.heads) if len(given) == 1 else given

    def reset_counts(self) -> None:
        """Count from here."""
        self.counts = ExitCounts(self.depth)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser, as a model gives them, of all that is not frozen."""
        return Model.parameter_groups(cast(Any, self), weight_decay)

    undecayed = Model.undecayed

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """The state before any token."""
        weight = self.model.embedding.weight
        options: dict[str, Any] = dict(dtype=dtype or weight.dtype, device=device or weight.device)
        heads: list[Any] = list(self.heads)
        return State(
            {
                "model": self.model.initial_state(batch_size, **options),
                "exits": State({str(i): head.initial_state(batch_size, **options) for i, head in enumerate(heads)}),
                "layers": torch.full((batch_size,), self.depth, dtype=torch.int64, device=options["device"]),
            }
        )

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        last: int | None = None,
        return_state: bool = True,
        layers: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Logits of tokens (batch, length), each through all blocks, and the state; arguments as `LanguageModel.forward`.

        With `layers` (batch, length) int64 each token leaves after so many blocks: what `step` gives token by token.
        """
        if layers is not None:
            if resets is not None or offsets is not None or last is not None:
                raise ValueError("layers: given exits are for whole sequences, without resets, offsets and last")
            return self._replayed(tokens, state, layers)
        streams, logits, after = self._read(tokens, state, resets=resets, offsets=offsets, last=last)
        exits: dict[str, Any] = {}
        for number, (head, hidden) in enumerate(zip(self.heads, streams, strict=True)):
            one = cast(ExitHead, head)
            before = state["exits"][str(number)] if state else None
            exits[str(number)] = State()
            if one.recurrent:
                _, exits[str(number)] = one.features(hidden, before, resets=resets, offsets=offsets)
        rows = tokens.shape[0] if offsets is None else offsets.shape[0] - 1
        layers = torch.full((rows,), self.depth, dtype=torch.int64, device=tokens.device)
        return logits, State({"model": after, "exits": State(exits), "layers": layers})

    def outputs(self, tokens: Tensor, *, resets: Tensor | None = None) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """What training compares, at all tokens (batch, length): every exit's features and logits; the model's logits."""
        with torch.no_grad():
            streams, whole, _ = self._read(tokens, None, resets=resets)
        found = []
        for head, hidden in zip(self.heads, streams, strict=True):
            one = cast(ExitHead, head)
            features, _ = one.features(hidden, resets=resets)
            found.append((features, one.logits(features, self.model)))
        return found, whole

    def step(self, tokens: Tensor, state: State, *, layers: Tensor | None = None) -> tuple[Tensor, State]:
        """One token a sequence: tokens (batch,) -> logits (batch, vocabulary) and the next state.

        `layers` (batch,) int64, each an exit's or the model's depth, decides in the thresholds' place.
        """
        self.model._check(tokens, 1)
        if layers is not None:
            self._check_layers(layers, tokens.shape)
        stack = self.model.stack
        residual = _wide(stack, self.model._embed(tokens))
        before, exits = state["model"], dict(state["exits"])
        after: dict[str, Any] = {}
        done = torch.full_like(tokens, self.depth, dtype=torch.int64)
        running = torch.ones_like(tokens, dtype=torch.bool)
        logits: Tensor | None = None
        cached: Any = None  # the key and value that the last attention layer made, of every row that reached it
        for index in range(self.depth):
            block: Any = stack.blocks[index]
            name = str(index)
            rows = running.nonzero()[:, 0]
            self.counts.blocks += len(rows)
            if len(rows) == len(tokens):
                residual, after[name] = block.step(residual, before[name])
            else:
                after[name], residual = self._split_step(block, residual, before[name], running, rows, cached)
            if isinstance(after[name], AttentionState):
                cached = after[name]
            if index + 1 not in self.exits.layers or not len(rows):
                continue
            number = self.exits.layers.index(index + 1)
            head = cast(ExitHead, self.heads[number])
            self.counts.exits += len(rows)
            own = exits[str(number)]
            features, new = head.step(residual[rows], own.select(rows) if len(rows) < len(tokens) else own)
            exits[str(number)] = new if len(rows) == len(tokens) or not head.recurrent else _put(own, new, rows)
            guesses = head.logits(features, self.model)
            if layers is None:
                kind, vocabulary = self.exits.confidence, self.config.vocab_size
                leaving = head.confidence(features, guesses, kind, vocabulary) > self.thresholds[number]
            else:
                leaving = layers[rows] == index + 1
            gone = rows[leaving]
            if len(gone):
                logits = guesses.new_zeros(len(tokens), guesses.shape[-1]) if logits is None else logits
                logits = logits.index_copy(0, gone, guesses[leaving])
                done[gone] = index + 1
                running[gone] = False
        rows = running.nonzero()[:, 0]
        if len(rows):
            whole = self.model._logits(self.model._finish(residual if logits is None else residual[rows]))
            logits = whole if logits is None else logits.index_copy(0, rows, whole.to(logits.dtype))
        assert logits is not None
        self.counts.tokens += len(tokens)
        for layer in done.tolist():
            self.counts.layers[layer] = self.counts.layers.get(layer, 0) + 1
        return logits, State({"model": State(after), "exits": State(exits), "layers": done})

    def forward_tree(self, tokens: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """Early exits go token by token."""
        raise NotImplementedError("forward_tree: early exits decode token by token; leave the draft out")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the exits, without the model: one file, or `exits.safetensors` into a folder; it is complete or absent."""
        from safetensors.torch import save_file

        target = Path(path) / EXITS_FILE if Path(path).is_dir() else Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"path: there is no folder {str(target.parent)!r}")
        config = dataclasses.asdict(self.exits) | {"thresholds": list(self.thresholds)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.heads.state_dict().items()}
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"format": _FORMAT, "config": json.dumps(config)})
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target

    @classmethod
    def load(cls, model: Any, path: str | os.PathLike[str]) -> EarlyExit:
        """A model with the exits that `save` wrote: a file, or the one in a checkpoint's folder.

        Raises:
            FileNotFoundError: there is none; says how to make one.
            ValueError: it is no such file, or its exits are another model's.
        """
        from safetensors import SafetensorError, safe_open

        source = Path(path) / EXITS_FILE if Path(path).is_dir() else Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"exits: there are none at {str(source)!r}; `statescan train exits` makes them")
        try:
            with safe_open(os.fspath(source), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"exits: {str(source)!r} is no complete safetensors file: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"exits: {str(source)!r} holds no exits; EarlyExit.save writes such files")
        made = cls(model, ExitConfig(**json.loads(metadata["config"])))
        try:
            made.heads.load_state_dict(tensors)
        except RuntimeError as error:
            first = str(error).splitlines()[1:2] or [str(error)]
            raise ValueError(f"exits: {str(source)!r} is another model's: {first[0].strip()}") from None
        return made.train(model.training)

    def _read(
        self,
        tokens: Tensor,
        state: State | None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        last: int | None = None,
    ) -> tuple[list[Tensor], Tensor, State]:
        """The residual stream (batch, length, dim) at every exit, the model's logits, and its state."""
        streams: list[Tensor] = []
        handles = [
            self.model.stack.blocks[layer - 1].register_forward_hook(lambda *args: streams.append(args[2][0]))
            for layer in self.exits.layers
        ]
        try:
            logits, after = self.model(
                tokens, state["model"] if state else None, resets=resets, offsets=offsets, last=last
            )
        finally:
            for handle in handles:
                handle.remove()
        return streams, logits, after

    def _split_step(
        self, block: Any, residual: Tensor, before: State, running: Tensor, rows: Tensor, cached: Any
    ) -> tuple[State, Tensor]:
        """A block's step for the rows that still run, and what the others' state becomes: that state, and the stream."""
        others = (~running).nonzero()[:, 0]
        if self.exits.skipped_states == "propagate":
            self.counts.advanced += len(others)
            left = block.advance(residual[others], before.select(others))
        else:
            left, advanced = _skip(block, before.select(others), residual[others], cached, others)
            self.counts.advanced += advanced
        if not len(rows):
            return left, residual
        moved, state = block.step(residual[rows], before.select(rows))
        order = torch.cat([rows, others]).argsort()
        return State.concatenate([state, left]).select(order), residual.index_copy(0, rows, moved)

    def _replayed(self, tokens: Tensor, state: State | None, layers: Tensor) -> tuple[Tensor, State]:
        """Whole sequences whose tokens leave at given layers."""
        self.model._check(tokens, 2)
        self._check_layers(layers, tokens.shape)
        state = self.initial_state(tokens.shape[0]) if state is None else state
        if self.exits.skipped_states == "skip":
            rows = []
            for place in range(tokens.shape[1]):
                one, state = self.step(tokens[:, place], state, layers=layers[:, place])
                rows.append(one)
            return torch.stack(rows, dim=1), state
        residual = _wide(self.model.stack, self.model._embed(tokens))
        after: dict[str, Any] = {}
        exits: dict[str, Any] = {}
        logits: Any = None
        for index, block in enumerate(self.model.stack.blocks):
            # A token that has left keeps its stream, from which the states of later blocks are advanced.
            moved, after[str(index)] = block(residual, state["model"][str(index)])
            residual = torch.where((layers > index)[..., None], moved, residual)
            if index + 1 not in self.exits.layers:
                continue
            number = self.exits.layers.index(index + 1)
            head = cast(ExitHead, self.heads[number])
            guesses, exits[str(number)] = self._guessed(head, residual, layers > index, state["exits"][str(number)])
            logits = guesses if logits is None else torch.where((layers == index + 1)[..., None], guesses, logits)
        whole = self.model._logits(self.model._finish(residual))
        logits = torch.where((layers == self.depth)[..., None], whole, logits)
        return logits, State({"model": State(after), "exits": State(exits), "layers": layers[:, -1]})

    def _guessed(self, head: ExitHead, residual: Tensor, reached: Tensor, state: State) -> tuple[Tensor, State]:
        """An exit's logits at all tokens, where those that left earlier do not come to it, and its state."""
        if not head.recurrent:
            features, after = head.features(residual)
            return head.logits(features, self.model), after
        rows, states = [], []
        for row, own in enumerate(reached):
            features = residual.new_zeros(residual.shape[1:], dtype=head.norm.weight.dtype)
            after = state.select([row])
            if bool(own.any()):
                some, after = head.features(residual[row : row + 1, own], after)
                features = features.index_copy(0, own.nonzero()[:, 0], some[0])
            rows.append(features)
            states.append(after)
        return head.logits(torch.stack(rows), self.model), State.concatenate(states)

    def _check_layers(self, layers: Tensor, shape: torch.Size) -> None:
        if layers.shape != shape:
            raise ValueError(f"layers: expected shape {tuple(shape)}, got {tuple(layers.shape)}")
        known = [*self.exits.layers, self.depth]
        strange = sorted(set(layers.flatten().tolist()) - set(known))
        if strange:
            raise ValueError(f"layers: expected exits, {', '.join(map(str, known))}, got {strange[0]}")


def _wide(stack: ResidualStack, x: Tensor) -> Tensor:
    """The residual stream's beginning, in its type."""
    return x.float() if stack.residual_in_float32 and x.dtype != torch.float64 else x


def _put(state: State, new: State, rows: Tensor) -> State:
    """A state with the entries of some sequences replaced."""
    return State({name: tensor.index_copy(0, rows, new[name].to(tensor.dtype)) for name, tensor in state.items()})


def _skip(block: Any, state: State, residual: Tensor, cached: Any, rows: Tensor) -> tuple[State, int]:
    """The state of a skipped block under ``skip``, and of how many tokens it had to be advanced.

    `cached` is the state of the last attention layer before this one, of the whole batch.
    """
    if not _holds_cache(state):
        return state, 0
    if isinstance(state, AttentionState) and cached is not None:
        newest = {name: cached[name][:, :, -1:].index_select(0, rows) for name in ("keys", "values")}
        if newest["keys"].shape[1::2] == state["keys"].shape[1::2]:
            grown = {
                name: torch.cat([state[name], entry.to(state[name].dtype)], dim=2) for name, entry in newest.items()
            }
            return AttentionState({**state, **grown}), 0
    return block.advance(residual, state), len(rows)  # no layer whose key and value would fit


def _holds_cache(state: State) -> bool:
    return isinstance(state, AttentionState) or any(
        _holds_cache(entry) for entry in state.values() if isinstance(entry, State)
    )
