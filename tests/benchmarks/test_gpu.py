"""The benchmark of a CUDA device, as far as it goes without one: its rows, its targets, and that tiny sizes run."""

import pytest
import torch

from benchmarks import _gpu, gpu


class Peer:
    """Stands in for mamba-ssm: the layers' own step, or something else."""

    def __init__(self, model, wrong=False):
        self.model, self.wrong = model, wrong

    def decoder(self, batch):
        if batch == 3:
            raise RuntimeError("out of memory\nsomewhere")
        state = self.model.initial_state(batch)

        def step(tokens):
            nonlocal state
            logits, state = self.model.step(tokens, state)
            return logits + 1e3 * self.wrong

        return step


def test_decoding_stands_beside_a_peer_that_agrees():
    options = dict(seconds=0.0, dim=16, depth=1)
    rows = _gpu.decoding("mamba_tiny", (1, 3), 1e9, make_peer=Peer, **options)
    assert [(row["batch"], row["library"]) for row in rows] == [
        (batch, name) for batch in (1, 3) for name in ("statescan", _gpu.HALF_STATE, "mamba-ssm")
    ]
    assert rows[2]["note"] == "" and rows[2]["ms"] > 0
    assert rows[2]["with the same state"] == pytest.approx(rows[2]["ms"] / rows[1]["ms"])
    assert rows[5]["note"] == "RuntimeError: out of memory" and rows[5]["ms"] is None
    (row,) = gpu.targets(rows, [])
    assert row["size"] == "mamba_tiny, batch 1" and row["target"] == gpu.DECODING
    rows = _gpu.decoding("mamba_tiny", (1,), 1e9, make_peer=lambda model: Peer(model, wrong=True), **options)
    assert "differs by" in rows[-1]["note"]
    rows = _gpu.decoding("mamba_tiny", (1,), 1e9, **options)
    assert rows[-1]["library"] == "mamba-ssm" and rows[-1]["note"]


def test_an_operator_stands_beside_peers_that_agree():
    x = torch.randn(4, 8)

    def broken():
        raise ImportError("no such package")

    case = gpu.Case(
        "gated_rms_norm",
        "4 x 8",
        {"x": x},
        lambda x: x.square(),
        {
            "same": lambda: gpu.Peer(lambda x: x * x, {"x": x}),
            "transposed": lambda: gpu.Peer(lambda x: x * x, {"x": x.mT}, lambda y: y.mT),
            "wrong": lambda: gpu.Peer(lambda x: x * x + 1, {"x": x}),
            "other": lambda: gpu.Peer(lambda q: q, {"q": x[0]}, same=False),
            "missing": broken,
        },
    )
    rows = gpu.measure(case, 1e9, seconds=0.0, least=1)
    timed = {row["library"] for row in rows if row["ms"]}
    assert timed == {"statescan", "same", "transposed", "other"}
    notes = {row["library"]: row["note"] for row in rows if row["note"]}
    assert "differs" in notes["wrong"] and notes["missing"] == "ImportError: no such package"
    (row,) = gpu.targets([], rows)
    assert row["what"].startswith("gated_rms_norm, forward") and row["held"] in ("yes", "no")


def test_targets_take_the_best_peer_of_a_size():
    def row(library, ratio, direction="forward + backward"):
        return {"operator": "ssd", "size": "1 x 9", "direction": direction, "library": library, "ms": 1.0} | {
            "statescan is faster by": ratio
        }

    rows = [row("statescan", 1.0), row("mamba-ssm", 1.4), row("flash-linear-attention", 0.9), row("attention", 0.1)]
    (found,) = gpu.targets([], [*rows, row("mamba-ssm", 0.5, "forward")])
    assert (found["reached"], found["held"]) == (0.9, "no")


def test_tiny_sizes_run_and_without_a_device_nothing_is_measured(monkeypatch, capsys):
    made = [make() for make in gpu.quick_cases()]
    assert {case.operator for case in made} == {make().operator for make in gpu.quick_cases()}
    for case in made:
        assert torch.isfinite(case.ours(**case.tensors).float()).all()
    monkeypatch.setattr(gpu, "quick_cases", lambda: [lambda: gpu.causal_conv1d(1, 20, 8)])
    monkeypatch.setattr("sys.argv", ["gpu", "--quick"])
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    gpu.main()
    printed = capsys.readouterr().out
    assert printed.index("Decoding,") < printed.index("Operators,") < printed.index("Targets") < printed.index("copies")
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(gpu, "CUDA", False)
    gpu.main()
    assert "nothing was measured" in capsys.readouterr().out
