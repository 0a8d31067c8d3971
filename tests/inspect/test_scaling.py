"""The cost model: its counts against tensors and messages that are there, its formulas against hand-made ones."""

import pytest
import torch

from statescan import inspect
from statescan.cli import main
from statescan.inspect import Machine, _scaling
from statescan.layers import Mamba, Mamba2
from statescan.parallel import _exchange
from statescan.parallel._mixers import mamba2_part, mamba_part

SIMPLE = Machine(flops=1e9, bandwidth=1e9, memory=1e9, scan=1e9, network=1e8, latency=1e-3)


class FirstOfTwo:
    """Hears nothing, and counts what it tells."""

    rank, size = 0, 2

    def __init__(self):
        self.numbers = self.messages = 0

    def earlier(self, message, combine):
        self.numbers += message.shape[1]
        self.messages += 1
        return lambda: combine(message[None][:0])


@pytest.mark.parametrize(
    ("mixer", "part"),
    [(Mamba(16, state_dim=4), mamba_part), (Mamba2(16, state_dim=8, head_dim=4, groups=2), mamba2_part)],
    ids=["mamba", "mamba2"],
)
def test_messages_are_counted_as_they_are_sent(mixer, part):
    first, x = FirstOfTwo(), torch.randn(1, 9, 16)
    with torch.no_grad():
        y, state = part(mixer, first, x, None, None)
        wanted, after = mixer(x)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["ssm"], after["ssm"], rtol=1e-4, atol=1e-5)
    marks = 2 + first.messages - 1  # how many inputs, and whether anything passes through
    assert _scaling._message_numbers(mixer) == first.numbers - marks
    assert _scaling.GATHERED == _exchange.GATHERED


def test_a_workload_is_what_other_counters_say():
    work, cost = inspect.workload("mamba_tiny", length=64), inspect.measure_cost("mamba_tiny", length=64)
    assert work.parameters == cost.parameters
    assert (work.flops + work.scan_operations) * 64 == pytest.approx(cost.flops_forward)
    assert work.scan_operations == 4 * (256 * 16 * 9 + 256 * 4 * 2)  # depth, scan, convolution
    assert work.activation_bytes * 64 == pytest.approx(cost.activation_bytes)
    assert inspect.workload("transformer_tiny", length=64).message_numbers is None


def test_one_machine_is_the_sum_of_its_parts():
    work = inspect.workload("mamba_tiny", length=64)
    cost = inspect.training_step(work, SIMPLE, batch=2)
    tokens = 128
    assert cost.tokens == tokens
    arithmetic = 3 * tokens * (work.flops + work.scan_operations) / 1e9
    assert cost.compute == pytest.approx(arithmetic + 5 * tokens * work.activation_bytes / 1e9)
    assert cost.optimiser == pytest.approx(28 * work.parameters / 1e9)
    assert cost.memory_bytes == pytest.approx(16 * work.parameters + tokens * work.activation_bytes)
    assert cost.communication == cost.exposed == cost.sent_bytes == 0
    assert cost.seconds == pytest.approx(cost.compute + cost.optimiser)
    for strategy in inspect.STRATEGIES:
        assert inspect.training_step(work, SIMPLE, 1, strategy, batch=2).seconds == cost.seconds


def test_what_strategies_send_and_hold():
    work = inspect.workload("mamba_tiny", length=64)
    weights = 4 * work.parameters
    ddp, fsdp, sequence, tensor = (inspect.training_step(work, SIMPLE, 4, name) for name in inspect.STRATEGIES)
    assert ddp.sent_bytes == pytest.approx(2 * 0.75 * weights)
    assert fsdp.sent_bytes == pytest.approx(3 * 0.75 * weights)
    states = 4 * (256 * 17 + 3 * 256)  # blocks of states, sums of steps and last inputs
    assert work.message_numbers == states
    assert sequence.sent_bytes == pytest.approx(ddp.sent_bytes + 2 * 3 * 4 * states)
    assert tensor.sent_bytes == pytest.approx(2 * 2 * 0.75 * 4 * 4 * 64 * 4 * (128 + 8 + 32))
    assert fsdp.memory_bytes < ddp.memory_bytes == sequence.memory_bytes
    assert {cost.tokens for cost in (ddp, fsdp, sequence, tensor)} == {256}
    assert tensor.exposed == tensor.communication > 0
    # Rounds grow with the logarithm, so that what a rank sends hardly grows at all.
    thousand = inspect.training_step(work, SIMPLE, 1000, "sequence")
    assert thousand.sent_bytes < 2 * weights + 2 * 10 * 4 * states


def test_computation_hides_messages_where_there_is_enough_of_it():
    work = inspect.workload("mamba_tiny", length=64)
    fast = Machine(flops=1e9, bandwidth=1e9, memory=1e9, scan=1e9, network=1e12, latency=1e-9)
    assert inspect.training_step(work, fast, 64).exposed == 0
    slow = Machine(flops=1e9, bandwidth=1e9, memory=1e9, scan=1e9, network=1e3, latency=1e-9)
    cost = inspect.training_step(work, slow, 64)
    assert cost.exposed == pytest.approx(cost.communication - 2 / 3 * cost.compute)
    assert cost.tokens_per_second < 64 * inspect.training_step(work, slow).tokens_per_second


def test_decoding_reads_weights_once_and_moves_states_twice():
    work = inspect.workload("mamba_tiny", length=64)
    alone, many = (inspect.decoding(work, SIMPLE, batch=batch) for batch in (1, 64))
    assert alone.read_bytes == 4 * work.parameters + 2 * work.state_bytes
    assert many.read_bytes == 4 * work.parameters + 128 * work.state_bytes
    assert many.tokens_per_second > alone.tokens_per_second
    assert inspect.decoding(work, SIMPLE, bytes_per_weight=1.0).memory_bytes < alone.memory_bytes
    quick = Machine(flops=1e3, bandwidth=1e12, memory=1.0)
    assert inspect.decoding(work, quick).bound == "arithmetic" and alone.bound == "memory"
    assert not inspect.decoding(work, quick).fits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Machine(flops=0), "flops: expected a positive number, got 0"),
        (lambda: inspect.training_step(inspect.workload("mamba_tiny"), SIMPLE, 0), "machines, batch: at least 1"),
        (
            lambda: inspect.training_step(inspect.workload("mamba_tiny"), SIMPLE, 2, "ring"),
            "strategy: one of ddp, fsdp",
        ),
        (
            lambda: inspect.training_step(inspect.workload("transformer_tiny"), SIMPLE, 2, "sequence"),
            "models of Mamba and Mamba-2 blocks alone, not 'transformer_tiny'",
        ),
        (
            lambda: inspect.decoding(inspect.workload("mamba_tiny"), SIMPLE, batch=0),
            "batch, bytes_per_weight: positive",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_command_prints_tables_and_draws(capsys, tmp_path):
    picture = tmp_path / "scaling.png"
    arguments = ["--model", "mamba_tiny", "--machines", "1", "1000", "--length", "128", "--out", str(picture)]
    assert main(["inspect", "scaling", *arguments]) == 0
    out = capsys.readouterr().out
    for word in (*inspect.STRATEGIES, "1,000", "of one", "float32", "int4"):
        assert word in out
    assert picture.stat().st_size > 1000
    assert main(["inspect", "scaling", "--model", "transformer_tiny", "--strategies", "tensor"]) == 2
    assert "Mamba and Mamba-2 blocks alone" in capsys.readouterr().err
