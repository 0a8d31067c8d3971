"""Our models under the LM Evaluation Harness (`lm_eval`), as model ``statescan``.

Importing this module registers the name; newer harnesses find it by themselves through the entry point
``lm_eval.models``. `evaluate_tasks` is the short way:

>>> evaluate_tasks("runs/demo", ["lambada_openai"])
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from statescan._names import nearest
from statescan.checkpoints import ByteTokenizer, check_tokenizer, load, load_tokenizer, locate
from statescan.generation import Tokenizer, generate, prefill, progress_bar
from statescan.layers import State
from statescan.tasks._likelihood import Likelihood, likelihoods

#: A request in tokens: what is given, and what is scored.
Pair = tuple[tuple[int, ...], tuple[int, ...]]


@register_model("statescan")
class StatescanLM(TemplateLM):
    """A statescan language model as the harness sees it.

    Requests of unequal lengths share a batch. Continuations of one context (the choices of a question) share its
    reading: the context's state is forked.

    Arguments:
        pretrained: a model, or the path or hub id of one.
        tokenizer: a tokenizer, or the path of one; None takes what lies beside the model, or bytes.
        batch_size: requests at a time.
        max_length: contexts are cut on the left to this many tokens; None, for a state-space model, cuts nothing.
        max_gen_toks: longest answer where a task names none.
        device: where the model runs.
        dtype: the model's floating-point type, such as "bfloat16"; None leaves it.
        prefix_token: token that stands before a text without context; None takes the tokenizer's end-of-text token or,
            where it has none, that of a line break.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        *,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        dtype: str | None = None,
        prefix_token: int | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size  # the harness passes it to every model; it only matters for batch_size="auto"
        self.model, self._tokenizer = _load(pretrained, tokenizer, device=device, dtype=dtype)
        self._batch_size = 8 if batch_size == "auto" else int(batch_size)
        if self._batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 or 'auto', got {batch_size!r}")
        self.max_length = None if max_length is None else int(max_length)
        self.max_gen_toks = int(max_gen_toks)
        self._device = next(self.model.parameters()).device
        self._prefix_token = prefix_token
        self.pretrained = str(pretrained) if isinstance(pretrained, str) else type(pretrained).__name__

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's request cache."""
        return f"statescan-{self.pretrained}".replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without context."""
        if self._prefix_token is not None:
            return self._prefix_token
        end = getattr(self._tokenizer, "end_of_text", None)
        return self._tokenizer.encode("\n")[-1] if end is None else end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text."""
        return self._tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts of any length: the state is carried, so no window cuts them."""
        sequences = [[self.prefix_token_id, *self.tok_encode(request.args[0])] for request in requests]
        results = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        with progress_bar("rolling log-likelihood", len(order), unit="texts", shown=not disable_tqdm) as advance:
            for batch in _batches(order, self._batch_size):
                scores = likelihoods(self.model, [sequences[index] for index in batch])
                for index, score in zip(batch, scores, strict=True):
                    results[index] = score.log_likelihood
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, score.log_likelihood)
                advance(len(batch))
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string."""
        results = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(index)
        with progress_bar("answers", len(requests), unit="answers", shown=not disable_tqdm) as advance:
            for indices in groups.values():
                settings = normalize_gen_kwargs(requests[indices[0]].args[1], self.max_gen_toks)
                contexts = {index: self._context(requests[index].args[0], settings) for index in indices}
                order = sorted(indices, key=lambda index: -len(contexts[index]))
                for batch in _batches(order, self._batch_size):
                    answers = self._generate([contexts[index] for index in batch], settings)
                    for index, answer in zip(batch, answers, strict=True):
                        results[index] = answer
                        self.cache_hook.add_partial("generate_until", requests[index].args, answer)
                    advance(len(batch))
        return results

    def _context(self, text: str, settings: Any) -> list[int]:
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        if self.max_length is not None:
            tokens = tokens[-max(self.max_length - settings["max_gen_toks"], 1) :]
        return tokens

    def _generate(self, contexts: list[list[int]], settings: Any) -> list[str]:
        end = getattr(self._tokenizer, "end_of_text", None)
        stop: list[str | int] = [string for string in settings["until"] if string]
        answers = generate(
            self.model,
            contexts,
            tokenizer=self._tokenizer,
            max_new_tokens=settings["max_gen_toks"],
            temperature=float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0,
            top_k=settings.get("top_k") or None,
            top_p=float(settings.get("top_p", 1.0)),
            min_p=float(settings.get("min_p", 0.0)),
            repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
            stop=stop if end is None else [*stop, end],
            seed=0,
        )
        return [answer.text or "" for answer in answers]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores of continuations given contexts, in tokens; called by the harness's `loglikelihood`."""
        pairs: list[Pair] = []
        for _, context, continuation in requests:
            if self.max_length is not None:
                context = context[-max(self.max_length - len(continuation) + 1, 1) :]
            pairs.append((tuple(context), tuple(continuation)))
        by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for index, (given, scored) in enumerate(pairs):
            by_context.setdefault(given, {}).setdefault(scored, []).append(index)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        order = sorted(by_context, key=lambda given: -len(given))
        with progress_bar("log-likelihood", len(requests), unit="requests", shown=not disable_tqdm) as advance:
            for batch in _context_batches(order, by_context, self._batch_size):
                unique = [(given, scored) for given in batch for scored in by_context[given]]
                for (given, scored), score in zip(unique, self._score(batch, unique), strict=True):
                    answer = (score.log_likelihood, score.greedy)
                    for index in by_context[given][scored]:
                        results[index] = answer
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                        advance(1)
        return results

    def _score(self, contexts: list[tuple[int, ...]], pairs: list[Pair]) -> list[Likelihood]:
        """Likelihoods of pairs whose contexts are read once each."""
        state: State | None = None
        if len(contexts[0]) > 1:  # the last token of a context is read with what follows it
            with torch.inference_mode():
                _, state = prefill(self.model, [context[:-1] for context in contexts])
        scores: list[Likelihood] = []
        row_of = {context: row for row, context in enumerate(contexts)}
        for batch in _batches(range(len(pairs)), self._batch_size):
            part = [pairs[index] for index in batch]
            rows = torch.tensor([row_of[context] for context, _ in part], device=self._device)
            with torch.inference_mode():
                forked = None if state is None else state.select(rows)
            scores += likelihoods(self.model, [(context[-1], *scored) for context, scored in part], forked)
        return scores


def evaluate_tasks(
    model: Any,
    tasks: Sequence[str],
    *,
    tokenizer: Any = None,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> dict[str, Any]:
    """Run tasks of the LM Evaluation Harness on a model and return its results table.

    Arguments:
        model, tokenizer, batch_size, device: see `StatescanLM`.
        tasks: names of tasks or groups.
        include_path: a folder with further task files.
        num_fewshot: examples shown before each question; None is the task's own number.
        limit: questions of each task (below 1, a fraction); None is all.
    """
    manager = _task_manager(tasks, include_path)
    results = lm_eval.simple_evaluate(
        model=StatescanLM(model, tokenizer, batch_size=batch_size, device=device),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=False,
    )
    assert results is not None
    return dict(results)


def _task_manager(tasks: Sequence[str], include_path: str | None) -> TaskManager:
    """Where the harness finds these tasks. Its own, thousands of files, are read only if they are needed."""
    if not tasks:
        raise ValueError("tasks: none given")
    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or _unknown(tasks, manager):
        manager = TaskManager(include_path=include_path)
    unknown = _unknown(tasks, manager)
    if unknown:
        hint = nearest(unknown[0], manager.all_tasks)
        raise ValueError(f"tasks: unknown task {unknown[0]!r}{hint}")
    return manager


def _unknown(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    return [name for name in tasks if not manager.match_tasks([name])]


def _load(pretrained: Any, tokenizer: Any, *, device: str | None, dtype: str | None) -> tuple[Any, Tokenizer]:
    """The model in evaluation mode and its tokenizer."""
    chosen = None if dtype is None else getattr(torch, dtype, None)
    if dtype is not None and not (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        raise ValueError(f"dtype: expected a floating-point type such as 'float32' or 'bfloat16', got {dtype!r}")
    if isinstance(pretrained, str | os.PathLike):
        folder = locate(pretrained)
        model = load(folder)
        tokenizer = folder if tokenizer is None else tokenizer
    else:
        model = pretrained
        tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer)
    check_tokenizer(tokenizer, model)
    return model.eval().to(device=device, dtype=chosen), tokenizer


def _batches(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _context_batches(
    order: list[tuple[int, ...]],
    by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]],
    size: int,
) -> list[list[tuple[int, ...]]]:
    """Contexts whose continuations fill a batch; those of one token, which need no reading, apart."""
    batches: list[list[tuple[int, ...]]] = []
    rows = size
    for context in order:
        new = len(by_context[context])
        if not batches or rows + new > size or (len(context) == 1) != (len(batches[-1][0]) == 1):
            batches.append([])
            rows = 0
        batches[-1].append(context)
        rows += new
    return batches
