"""Generation runs in constant memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from statescan.checkpoints import ByteTokenizer
from statescan.generation import generate, stream
from tests.generation import _models

TOKENS = 20_000
#: Allocators keep a little back now and then; a leak of one 16 kB state a token would be a hundred times this.
SLACK = 4 * 2**20


def resident_bytes() -> int:
    """Memory of the process now, or at most so far where the system does not tell."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "name", ["mock", "mamba_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in _models.OTHER_CONSTANT)]
)
def test_twenty_thousand_tokens_let_neither_state_nor_process_grow(name):
    model = _models.build(name, **({} if name == "mock" else {"depth": 1}))
    pieces = stream(model, "go", tokenizer=ByteTokenizer(), max_new_tokens=TOKENS, seed=0, stop="\x00\x01\x02\x03")
    state_bytes, process_bytes, count = set(), [], 0
    for count, piece in enumerate(pieces, 1):
        if count % 2_000 == 0:
            state_bytes.add(pieces.state_of().model.nbytes)
            process_bytes.append(resident_bytes())
        ended = piece.finish_reason
    assert (count, ended) == (TOKENS, "length")
    assert len(state_bytes) == 1
    assert process_bytes[-1] - process_bytes[1] < SLACK


def test_a_long_prompt_is_read_in_chunks_of_bounded_size():
    model = _models.build("mock")
    sizes = []
    forward = model.forward

    def watched(tokens, *args, **kwargs):
        sizes.append(tokens.numel())
        return forward(tokens, *args, **kwargs)

    model.forward = watched
    generate(model, [list(range(200)), list(range(130))], max_new_tokens=1, prefill_chunk=64)
    assert max(sizes) == 64
