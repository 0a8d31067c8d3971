"""Pictures of what is inside a system."""

from __future__ import annotations

from pathlib import Path


def hippo(*, measure: str = "legs", out: Path, state_dim: int = 64, length: int = 2000, seed: int = 0) -> None:
    """Draw what a HiPPO memory remembers: a signal, the signal read back from its coefficients, and the measure.

    Examples:

      statescan inspect hippo --measure legs --out picture.png

    Args:
        measure: legs, legt or fout.
        out: the picture; its suffix says the format.
        state_dim: coefficients.
        length: samples of the signal.
        seed: of the signal.
    """
    from statescan import inspect

    found = inspect.draw_memory(out, measure, state_dim=state_dim, length=length, seed=seed)
    print(f"{out}: relative error under the measure {found.error:.2%}")


COMMANDS = {"hippo": hippo}
