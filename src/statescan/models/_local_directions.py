"""The walks that the search chose for the published LocalMamba models: data of their code, a row a layer."""

from __future__ import annotations


def _rows(*lines: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in lines)


#: LocalVMamba-T, 15 layers.
LOCAL_VMAMBA_TINY = _rows(
    "h h_flip w7 w7_flip",
    "h_flip v_flip w2 w2_flip",
    "h_flip v_flip w2_flip w7",
    "h_flip v v_flip w2",
    "h h_flip v_flip w2_flip",
    "h_flip v_flip w2 w2_flip",
    "h w2_flip w7 w7_flip",
    "h h_flip v v_flip",
    "h v_flip w7 w7_flip",
    "h_flip v w2 w7_flip",
    "v v_flip w2 w7_flip",
    "h h_flip v_flip w2_flip",
    "v_flip w2_flip w7 w7_flip",
    "h_flip v_flip w2_flip w7_flip",
    "h_flip v w7 w7_flip",
)

#: LocalVMamba-S, 33 layers.
LOCAL_VMAMBA_SMALL = _rows(
    "h v v_flip w7_flip",
    "h h_flip v w7",
    "h_flip v v_flip w7",
    "h_flip v w2_flip w7",
    "h_flip v w2_flip w7",
    "h_flip v_flip w2 w7_flip",
    "h_flip v v_flip w7",
    "h v v_flip w7",
    "h v v_flip w7",
    "h v v_flip w7_flip",
    "h h_flip v v_flip",
    "h v v_flip w2",
    "v v_flip w2_flip w7",
    "h h_flip v w2",
    "h_flip v v_flip w7_flip",
    "h h_flip v v_flip",
    "h v v_flip w7_flip",
    "h v v_flip w7_flip",
    "h h_flip v_flip w7",
    "h_flip v_flip w2_flip w7",
    "h_flip v v_flip w7_flip",
    "v v_flip w7 w7_flip",
    "h v v_flip w7_flip",
    "h_flip v v_flip w2",
    "h v v_flip w2_flip",
    "h h_flip v w7",
    "h h_flip w7 w7_flip",
    "h v_flip w2 w2_flip",
    "h v_flip w2 w7",
    "h v v_flip w7_flip",
    "h_flip v w2_flip w7",
    "h_flip v_flip w7 w7_flip",
    "h v w7 w7_flip",
)

#: LocalVim-T and LocalVim-S, 20 layers.
LOCAL_VIM = _rows(
    "h v_flip w7 w7_flip",
    "h_flip w2_flip w7 w7_flip",
    "h h_flip v w7",
    "h h_flip v v_flip",
    "h h_flip v v_flip",
    "h h_flip v v_flip",
    "h_flip v v_flip w7",
    "h_flip v v_flip w2_flip",
    "h h_flip v v_flip",
    "h h_flip v v_flip",
    "h v v_flip w2",
    "h v v_flip w2_flip",
    "h h_flip v_flip w7",
    "h_flip v v_flip w2",
    "h h_flip v v_flip",
    "h v w2 w2_flip",
    "v v_flip w2 w7",
    "h h_flip v w2",
    "h h_flip w2_flip w7",
    "v v_flip w2 w2_flip",
)
