"""Training a language model on a mixture of objectives, chosen by their rewards. Blouir et al. 2024, arXiv 2411.01030."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data
from statescan.tasks._objective_sampler import ObjectiveSampler
from statescan.tasks._run_folder import MetricsFile, RunFolder
from statescan.tasks.language import LanguageTraining, model_of, streams_of, tokenizer_of

if TYPE_CHECKING:
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Sums

#: A row is full when fewer places are left, or after so many samples that found no room.
_LEAST_SPACE, _MISSES = 16, 8


@dataclass(frozen=True)
class ObjectiveTraining(LanguageTraining):
    """Train a language model on a mixture of objectives: infilling, copying, deshuffling, retrieval of spans and others.

    A model with `bidirectional_prefix` reads the inputs of a sample in both directions (`--mixer gated_ssm --set
    bidirectional_prefix=True`), any other forwards; labels are written forwards and alone are learnt.

    Example: statescan train objectives --data book.txt --model mamba_tiny --length 512 --out runs/mixture
    """

    #: Kinds of objectives to mix: next_token_prediction, prefix_language_modeling, infilling, copying, deshuffling,
    #: selective_copying, autoencoding; none: Birdie's fifteen settings of all but the last.
    objectives: tuple[str, ...] = ()
    #: How often which: by the reward model, or all alike.
    sampler: Literal["reward", "uniform"] = "reward"
    #: Steps between measurements of all objectives; None: a thirtieth of all steps.
    round_steps: int | None = None
    #: Sequences of the held-out text that an objective is measured on.
    round_samples: int = 8
    #: Channels of the reward model.
    reward_width: int = 64
    #: Blocks of the reward model.
    reward_depth: int = 2
    #: Steps that the reward model is trained after each measurement.
    reward_iterations: int = 100
    #: Mixtures that the reward model compares, four times.
    reward_candidates: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("round_steps", "round_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.carry_state:
            raise ValueError("carry_state: samples of a mixture are strangers; leave it out")
        if self.world_size > 1:
            raise ValueError(f"devices: a mixture is trained in one process, got {self.world_size}")
        mixture(self.objectives)


def mixture(kinds: Sequence[str] = ()) -> tuple[data.Objective, ...]:
    """The published settings of some kinds of objectives; all of them if none is named.

    Raises:
        ValueError: a kind that does not exist.
    """
    known = data.birdie_mixture()
    if not kinds:
        return known
    known = (*known, data.Autoencoding())
    names = sorted({objective.kind for objective in known})
    for kind in kinds:
        if kind not in names:
            raise ValueError(f"objectives: unknown {kind!r}; known: {', '.join(names)}")
    return tuple(objective for objective in known if objective.kind in kinds)


class MixedBatches(IterableDataset):
    """Rows of samples, from batch `first` on; batch n is a pure function of seed, n and the probabilities in force then.

    Arguments:
        text: what samples are made of.
        objectives: that are mixed.
        probabilities: of them, given a batch's number.
        encode: turns markers into tokens.
        length: places of a row.
        batch_size: rows.
        seed, stream: of which random sequence.
        first, last: batches to give; last None is without end.
    """

    def __init__(
        self,
        text: data.TokenStream,
        objectives: Sequence[data.Objective],
        probabilities: Callable[[int], Tensor],
        *,
        encode: data.Encode,
        length: int,
        batch_size: int,
        seed: int,
        stream: str,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        self._text, self._objectives, self._probabilities = text, tuple(objectives), probabilities
        self._encode, self._length, self._batch_size = encode, length, batch_size
        self._seed, self._stream, self._first, self._last = seed, stream, first, last

    def __iter__(self) -> Any:
        index = self._first
        while self._last is None or index < self._last:
            yield self.batch(index)
            index += 1

    def batch(self, index: int) -> data.PackedObjectives:
        """Batch number `index`."""
        rng = np.random.default_rng(data.batch_seed(self._seed, self._stream, index))
        chances = self._probabilities(index).double().numpy()
        rows = [self._row(rng, chances / chances.sum()) for _ in range(self._batch_size)]
        return data.pack_objectives(rows, self._length)

    def _row(self, rng: np.random.Generator, chances: np.ndarray) -> list[data.ObjectiveSample]:
        row: list[data.ObjectiveSample] = []
        space, misses = self._length + 1, 0
        while space >= _LEAST_SPACE and misses < _MISSES:
            objective = self._objectives[rng.choice(len(self._objectives), p=chances)]
            start = int(rng.integers(max(1, len(self._text) - self._length)))
            tokens = self._text.tokens[start : start + self._length].tolist()
            sample = objective(tokens, space=space, seed=int(rng.integers(1 << 62)), encode=self._encode)
            if sample is None or sample.size < 2:
                misses += 1
                continue
            row.append(sample)
            space -= sample.size - 1
        return row


def train_objectives(settings: ObjectiveTraining) -> TrainingResult:
    """Train a language model on a mixture of objectives; leaves model, metrics and ``mixture.csv`` in ``settings.out``.

    Raises:
        FileNotFoundError: for text that is not there.
        ValueError: as `train_language`; for an objective that finds no room in a row of `length`.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    tokenizer = tokenizer_of(settings)
    text, held_out = streams_of(settings, tokenizer)
    objectives = mixture(settings.objectives)
    every = settings.round_steps or max(1, settings.steps // 30)
    sampler = ObjectiveSampler(
        [objective.kind for objective in objectives],
        steps=max(20, settings.steps),
        width=settings.reward_width,
        depth=settings.reward_depth,
        iterations=settings.reward_iterations,
        candidates=settings.reward_candidates,
        seed=settings.seed,
    )
    common: dict[str, Any] = {"encode": tokenizer.encode, "length": settings.length, "seed": settings.seed}
    even = sampler.probabilities
    measured = []
    for number, objective in enumerate(objectives):
        alone = MixedBatches(
            *(held_out, [objective], lambda index: even[:1]),
            batch_size=settings.round_samples,
            stream=f"round {number}",
            **common,
        )
        batch = alone.batch(0)
        if (batch.targets == data.IGNORED).all():
            raise ValueError(f"length: {settings.length} tokens are too few for {objective}, or the held-out text is")
        measured.append(batch)

    from statescan.tasks._fit import Objective, fit
    from statescan.tasks._module import next_token
    from statescan.tasks._objective_rounds import Rounds

    model = model_of(settings, tokenizer)
    rounds = Rounds(
        sampler,
        measured,
        every=every,
        steps=settings.steps,
        accumulate=settings.accumulate,
        table=MetricsFile(folder.path / "mixture.csv"),
        names=[f"{number} {objective.kind}" for number, objective in enumerate(objectives)],
    )
    uniform = settings.sampler == "uniform"

    def batches(first: int, rank: int, world: int) -> MixedBatches:
        chances = (lambda index: even) if uniform else rounds.probabilities
        common_here = common | {"batch_size": settings.batch_size, "stream": "train"}
        return MixedBatches(text, objectives, chances, first=first, **common_here)

    def validation(first: int, rank: int, world: int) -> IterableDataset:
        return _Given(measured)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    objective_of_run = Objective(
        batches,
        validation,
        targets=settings.length,
        columns=("validation_loss", "validation_accuracy"),
        describe=describe,
        measure=next_token(count_correct=True),
        callbacks=() if uniform else (rounds,),
    )
    return fit(model, settings, folder, objective_of_run, tokenizer=tokenizer)


class _Given(IterableDataset):
    """Batches that there are already."""

    def __init__(self, batches: Sequence[data.PackedObjectives]) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return iter(self._batches)
