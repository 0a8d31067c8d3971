"""Speculative decoding with token trees on a CPU: what a pass costs, and tokens a second with and without drafts.

python -m benchmarks.speculative --out runs/speculative

First, for a Mamba-2 and a Mamba with fresh weights: a pass over a tree of 16 nodes beside a pass over 16 tokens in a row, 16
single steps, and the same tree unrolled into a batch of its paths. Then a target and a smaller draft are trained on the
text of `examples` (`--minutes` of processor time for the target, a third for the draft; or `--target` and `--draft` name
folders of models of bytes) and continue held-out text, greedily and sampled, with each kind of draft.

All on one thread, in processor time, so that a busy machine changes little. Models and finished figures are kept in OUT: a
killed run goes on there. Wu et al. 2025, "STree", arXiv 2505.14969. --quick shows in a minute that it works.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import torch

import statescan
from benchmarks import _bible, _measure
from benchmarks._points import Points
from statescan import ops
from statescan.generation import ModelDraft, NGramDraft, SpeculativeStream, stream

#: 16 nodes with 6 leaves, 4 levels deep.
BRANCHING = (3, 2, 1)
SIZES: dict[str, dict[str, Any]] = {
    "Mamba-2": dict(name="mamba2_tiny", dim=512, depth=6, state_dim=128, head_dim=64),
    "Mamba": dict(name="mamba_tiny", dim=512, depth=6, state_dim=16),
}
TARGET = dict(dim=256, depth=6, state_dim=64, head_dim=64)
DRAFT = dict(dim=96, depth=1, state_dim=16, head_dim=32)
DRAFTS = ("none", "n-grams, chain", "n-grams, tree", "model, chain", "model, static tree", "model, dynamic tree")


def create(fields: dict[str, Any], *, seed: int = 0) -> Any:
    """A model of bytes with fresh weights."""
    torch.manual_seed(seed)
    fields = {"name": "mamba2_tiny", "vocab_size": 256} | fields
    return statescan.create_model(fields.pop("name"), **fields).eval()


@torch.inference_mode()
def pass_costs(fields: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """Milliseconds of each way to read 16 nodes, and bytes that are kept for them."""
    model = create(fields)
    parents = ops.branching_tree(BRANCHING)
    nodes = len(parents)
    tokens = torch.randint(256, (1, nodes), generator=torch.Generator().manual_seed(0))
    _, state = model(torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1)))
    leaves = ops.unroll_tree(parents)
    paths = tokens[0][leaves]
    logits, trace = model.forward_tree(tokens, parents, state)
    unrolled, copies = model(paths, state.select([0] * len(leaves)))
    error = float((logits[0][leaves] - unrolled).abs().max())
    if error > 1e-3:
        raise RuntimeError(f"the tree and its paths differ by {error:.1e}")

    def steps() -> None:
        after = state
        for node in range(nodes):
            _, after = model.step(tokens[:, node], after)

    path = leaves[:1]
    times = _measure.milliseconds(
        {
            "tree": lambda: model.forward_tree(tokens, parents, state),
            "row": lambda: model(tokens, state),
            "unrolled": lambda: model(paths, state.select([0] * len(leaves))),
            "steps": steps,
            "one step": lambda: model.step(tokens[:, 0], state),
            "replay": lambda: model.replay(trace, path, state),
        },
        seconds=seconds,
        clock=time.process_time,
    )
    return times | {"state": state.nbytes, "trace": trace.nbytes, "copies": copies.nbytes}


def make_draft(kind: str, draft: Any) -> Any:
    """A draft by its name in the table."""
    return {
        "none": None,
        "n-grams, chain": NGramDraft(depth=6, longest=6, shortest=2),
        "n-grams, tree": NGramDraft(depth=6, longest=6, shortest=1, branches=4, nodes=16),
        "model, chain": ModelDraft(draft, depth=4),
        "model, static tree": ModelDraft(draft, tree="static", branching=BRANCHING),
        "model, dynamic tree": ModelDraft(draft, tree="dynamic", depth=5, beams=3, nodes=16),
    }[kind]


def decode(target: Any, draft: Any, kind: str, *, temperature: float, prompts: int, length: int) -> dict[str, Any]:
    """Continue held-out text; what it took, and the tokens, so that they can be compared."""
    rows = _bible.windows(_bible.tokens()[1], prompts, 256, seed=0).tolist()
    texts, passes, seconds = [], 0, 0.0
    for number, prompt in enumerate(rows):
        pieces = stream(
            target, prompt, max_new_tokens=length, temperature=temperature, seed=number, draft=make_draft(kind, draft)
        )
        first = next(pieces).token  # reading the prompt is not timed
        began = time.process_time()
        texts.append([first] + [piece.token for piece in pieces])
        seconds += time.process_time() - began
        passes += pieces.counts.passes if isinstance(pieces, SpeculativeStream) else length - 1
    return {"texts": texts, "passes": passes, "seconds": seconds}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speculative"), help="folder of what is finished")
    parser.add_argument("--minutes", type=float, default=10, help="processor time of the target's training")
    parser.add_argument("--target", type=Path, help="folder of a model of bytes, instead of training one")
    parser.add_argument("--draft", type=Path, help="folder of a smaller one")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a continuation")
    parser.add_argument("--quick", action="store_true", help="seconds of everything, results not saved")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.prompts, options.length = min(options.minutes, 0.3), 2, 64
    torch.set_num_threads(1)
    points = Points(options.out / "points.jsonl")
    seconds = 1.0 if options.quick else 5.0
    costs = []
    for name, fields in SIZES.items():
        point = {"what": "pass", "fields": fields, "seconds": seconds}
        found = points.get(point, functools.partial(pass_costs, fields, seconds=seconds))
        costs.append(
            {
                "model": name,
                "tree, ms": found["tree"],
                "in a row, ms": found["row"],
                "tree / row": found["tree"] / found["row"],
                "unrolled, ms": found["unrolled"],
                "16 steps, ms": found["steps"],
                "one step, ms": found["one step"],
                "replay, ms": found["replay"],
                "state, KiB": found["state"] / 1024,
                "kept for a tree, KiB": found["trace"] / 1024,
                "unrolled states, KiB": found["copies"] / 1024,
            }
        )
    title = "one pass over 16 nodes"
    _measure.show(title, costs)

    loss = functools.partial(_bible.text_loss, batch=8, length=256)
    if options.target:
        target = statescan.load(options.target).eval()
    else:
        target = _bible.trained(options.out / "target", lambda: create(TARGET), loss, seconds=60 * options.minutes)
    if options.draft:
        draft = statescan.load(options.draft).eval()
    else:
        draft = _bible.trained(options.out / "draft", lambda: create(DRAFT), loss, seconds=20 * options.minutes)
    bits = {name: _bible.bits_per_byte(model) for name, model in (("target", target), ("draft", draft))}
    print({name: f"{value:.3f} bits per byte, held out" for name, value in bits.items()})
    speeds = []
    for temperature in (0.0, 1.0):
        plain: dict[str, Any] = {}
        for kind in DRAFTS:
            size = {"temperature": temperature, "prompts": options.prompts, "length": options.length}
            models = [str(options.target), str(options.draft), options.minutes]
            found = points.get(
                {"what": "decode", "kind": kind, "models": models, **size},
                functools.partial(decode, target, draft, kind, **size),
            )
            plain = plain or found
            count = options.prompts * (options.length - 1)
            same = sum(a == b for a, b in zip(found["texts"], plain["texts"], strict=True))
            speeds.append(
                {
                    "tokens": "greedy" if temperature == 0 else "sampled",
                    "draft": kind,
                    "tokens a second": count / found["seconds"],
                    "of plain": plain["seconds"] / found["seconds"],
                    "tokens a pass": count / found["passes"],
                    "texts the same": f"{same} of {options.prompts}",
                }
            )
    decoding = f"continuing {options.prompts} held-out texts by {options.length} bytes"
    _measure.show(decoding, speeds)
    if not options.quick:
        saved = {"pass": costs, "decoding": speeds, "bits per byte": bits, "minutes": options.minutes}
        print(_measure.save("speculative", saved, tables={title: costs, decoding: speeds}))


if __name__ == "__main__":
    main()
