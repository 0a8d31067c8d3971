"""Continue a text with a language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    prompt_file: Path | None = None,
    tokenizer: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    seed: int | None = None,
    state: Path | None = None,
    save_state: Path | None = None,
    prefill_chunk: int = 2048,
    draft: str | None = None,
    draft_tree: Literal["chain", "static", "dynamic"] = "chain",
    draft_depth: int = 4,
    draft_branching: tuple[int, ...] = (3, 2, 1),
    draft_nodes: int = 16,
    acceptance: Literal["matching", "rounds"] = "matching",
    long_context: str | None = None,
    decay_threshold: float = 0.05,
    exits: str | None = None,
    exit_threshold: float | None = None,
    device: str | None = None,
    native: Literal["auto", "off", "float32", "bfloat16", "int8", "int4"] = "auto",
    json: bool = False,
) -> None:
    r"""Continue a text with a language model.

    One prompt is written out as its continuation comes, several when all are there.

    For instance:

      statescan generate runs/book --prompt "In the beginning" --temperature 0.8 --top-p 0.95

      statescan generate runs/book --prompt-file chapter.txt --max-new-tokens 2000 --save-state chapter.safetensors

      statescan generate runs/book --prompt "Once upon a time" --draft ngram --draft-tree dynamic

      statescan generate runs/book --state chapter.safetensors --prompt " And then" --stop "\n\n" --json

    Args:
        model: folder, file or hub id of a model.
        prompt: text to continue; given several times, they are continued side by side.
        prompt_file: a file with a text to continue; - reads the standard input.
        tokenizer: folder or file of a tokenizer; by default the one beside the model, or bytes.
        max_new_tokens: the most tokens a prompt gets.
        temperature: 0 always takes the most probable token.
        top_k: draw from the k most probable tokens.
        top_p: draw from the most probable tokens that together have this probability.
        min_p: leave out tokens less probable than this fraction of the most probable one.
        repetition_penalty: above 1, tokens that occurred become less probable.
        stop: a string that ends the continuation, may be given several times; \n, \t and \\ are read as in Python.
        seed: repeat a run; prompt number i uses seed + i.
        state: go on from what --save-state wrote.
        save_state: write where the continuation can go on to this file.
        prefill_chunk: tokens of a prompt read at a time.
        draft: guess tokens, for the model to verify several at a time: ngram looks them up in the text so far, else a
            folder, file or hub id of a smaller model with the same tokenizer. The text is the same as without.
        draft_tree: one guess, a tree of the shape of --draft-branching, or a tree of the most probable guesses (with
            ngram: the continuations of the latest occurrences, as many as --draft-branching has leaves).
        draft_depth: tokens of a guess (chain, dynamic).
        draft_branching: guesses for the first, second, … token (static).
        draft_nodes: tokens of a dynamic tree.
        acceptance: accept guesses that are the tokens the model draws, or (static, chain) by the ratio of probabilities:
            as good a sample of the model, but another text than without a draft.
        long_context: filter tokens of a prompt far beyond the training length: auto for the calibration beside the model
            (`statescan calibrate longmamba`), or its file.
        decay_threshold: with it, channels are filtered of whose state more than this is left after the training length.
        exits: let tokens leave at intermediate layers: auto for the exits beside the model (`statescan train exits`), or
            their file.
        exit_threshold: with it, how sure an exit has to be, from 0 to 1; by default what the exits were calibrated to.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        native: the CPU's decode engine: auto uses it where it knows the model, with weights as they are; a type packs
            them so and refuses what it does not know; off leaves the model to PyTorch.
        json: print data instead of text.
    """
    from statescan import generation
    from statescan.cli import _language

    texts = list(prompt) + ([] if prompt_file is None else [_language.read_prompt(prompt_file)])
    before = None if state is None else generation.GenerationState.load(state)
    if save_state is not None and not save_state.parent.is_dir():
        raise FileNotFoundError(f"save-state: there is no folder {str(save_state.parent)!r}")
    if save_state is not None and len(texts) > 1:
        raise ValueError(f"save-state: it holds one continuation, but {len(texts)} prompts were given")
    loaded, chosen = _language.load(model, tokenizer, device=device)
    steering = {"exits": exits, "draft": draft, "long-context": long_context}
    steered = next((flag for flag, on in steering.items() if on is not None), None)
    if exits is not None and (draft is not None or long_context is not None):
        other = "draft" if draft is not None else "long-context"
        raise ValueError(f"exits: they decode token by token through parts of the model; leave --{other} out")
    if steered and native not in ("auto", "off"):
        raise ValueError(f"native: the decode engine takes no --{steered}; give --native off, or leave --{steered} out")
    if native != "off" and not steered and (native != "auto" or not generation.native_reason(loaded)):
        loaded = generation.compile_for_generation(loaded, None if native == "auto" else native, release=True)
    if exits is not None:
        loaded = _language.exits(exits, model, loaded, threshold=exit_threshold)
    settings: dict[str, Any] = dict(
        tokenizer=chosen,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=[_language.unescape(string) for string in stop],
        seed=seed,
        state=before,
        prefill_chunk=prefill_chunk,
    )
    filtering = _language.long_context(long_context, model, decay_threshold=decay_threshold)
    settings |= dict(acceptance=acceptance, long_context=filtering)
    if draft is not None:
        settings["draft"] = _draft(
            draft, draft_tree, draft_depth, draft_branching, draft_nodes, acceptance, device=device
        )
    if len(texts) <= 1 and not json:
        pieces = generation.stream(loaded, texts or None, **settings)
        for piece in pieces:
            print(piece.text, end="", flush=True)
        print()
        if save_state is not None:
            pieces.state_of().save(save_state)
        return
    results = generation.generate(loaded, texts or None, **settings, keep_states=save_state is not None, progress=True)
    if save_state is not None and results[0].state is not None:
        results[0].state.save(save_state)
    if json:
        from statescan.cli import _print

        rows = [
            {"prompt": text, "text": r.text, "tokens": r.tokens, "finish_reason": r.finish_reason}
            | ({} if exits is None else {"saved_blocks": loaded.counts.saved})
            for text, r in zip(texts or [""], results, strict=True)
        ]
        _print.as_json(rows)
        return
    for text, result in zip(texts, results, strict=True):
        sys.stdout.write(f"{text}{result.text}\n\n")


def _draft(
    name: str,
    tree: Literal["chain", "static", "dynamic"],
    depth: int,
    branching: tuple[int, ...],
    nodes: int,
    acceptance: str,
    *,
    device: str | None,
) -> Any:
    """What the flags say of guesses."""
    import math

    from statescan import checkpoints, generation
    from statescan.cli import _language

    if name == "ngram":
        if acceptance == "rounds":
            raise ValueError("acceptance: rounds needs a draft that is a model; --draft ngram takes matching")
        if tree == "chain":
            return generation.NGramDraft(depth=depth)
        depth = len(branching) if tree == "static" else depth
        return generation.NGramDraft(depth=depth, branches=math.prod(branching), nodes=nodes)
    model = checkpoints.load(checkpoints.locate(name), device=_language.device_of(device))
    return generation.ModelDraft(
        model, tree=tree, depth=depth, branching=branching, nodes=nodes, drawn=acceptance == "rounds"
    )
