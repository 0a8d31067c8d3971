"""What a backbone costs with tokens dropped, on the command line."""

import pytest

from statescan import inspect
from statescan.cli import main


def test_tokens_and_operations_before_and_after(capsys):
    assert main(["inspect", "pruning", "--model", "vim_micro", "--prune-after", "1", "3", "--keep-ratio", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "tokens by block: 64 32 32 16" in out
    assert "43.8%" in out  # 144 of 256 tokens
    whole, pruned = inspect.pruning_costs("vim_micro", (1, 3), 0.5)
    assert (whole.tokens, pruned.tokens) == ((64,) * 4, (64, 32, 32, 16))
    assert f"{pruned.cost.multiply_adds:,}" in out
    assert whole.cost == inspect.image_cost("vim_micro")
    assert inspect.pruning_costs("vim_micro", size=64)[0].tokens[0] == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vssd_micro"], "got VSSD: its resolution falls from stage to stage"),
        (["--model", "vim_micro", "--prune-after", "9"], "prune_after: from 1 to the backbone's 4 blocks, got 9"),
        (["--model", "vim_micro", "--keep-ratio", "2"], "keep_ratio: in (0, 1], got 2.0"),
        (["--model", "mamba_tiny"], "it reads no images"),
    ],
)
def test_what_cannot_be_pruned_is_one_line(capsys, arguments, message):
    assert main(["inspect", "pruning", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
