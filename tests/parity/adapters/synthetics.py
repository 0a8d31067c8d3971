"""The generators of synthetic tasks: S4's copying, safari's induction heads and associative recall, Zoology's MQAR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from statescan.data import associative_recall_sequences, copying, induction_head_sequences, multi_query_recall
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

#: `ICLDataModule`'s, for both of its tasks.
SAFARI_NAMES = {"vocab_size": "vocab_size", "input_seq_len": "input_length", "seed": "seed"}
SAFARI_BOOKKEEPING = ("num_examples", "num_test_examples", "batch_size", "max_copy_len", "data_dir", "copy_method")
SAFARI_TASKS: dict[str, tuple[Callable[..., Tensor], dict[str, str], tuple[str, ...]]] = {
    "induction_head": (
        induction_head_sequences,
        {"induction_len": "induction_length", "induction_num_triggers": "triggers"},
        ("num_keys", "allow_dot"),
    ),
    "assoc_recall": (
        associative_recall_sequences,
        {"num_keys": "key_length", "allow_dot": "allow_absent"},
        ("induction_len", "induction_num_triggers"),
    ),
}
#: Its defaults, where ours differ.
SAFARI_DEFAULTS = {"allow_dot": False}


def in_context(fixture: Fixture) -> dict[str, Any]:
    """`ICLDataModule.generate_example`, called once a sequence."""
    given = SAFARI_DEFAULTS | fixture.kwargs
    method = given.get("copy_method")
    if method not in SAFARI_TASKS:
        raise ParityError(f"copy_method {method!r} is not supported; supported: {', '.join(SAFARI_TASKS)}")
    generate, names, others = SAFARI_TASKS[method]
    settings = translate(given, SAFARI_NAMES | names, ignored=(*SAFARI_BOOKKEEPING, *others))
    return {"sequences": generate(fixture.outputs["sequences"][0], **settings)}


def multiquery_ar(fixture: Fixture) -> dict[str, Any]:
    """`multiquery_ar`."""
    names = {
        "num_examples": "count",
        "vocab_size": "vocab_size",
        "input_seq_len": "input_length",
        "num_kv_pairs": "pairs",
        "power_a": "power",
        "random_non_queries": "random_non_queries",
        "seed": "seed",
    }
    given = {"num_kv_pairs": 8} | fixture.kwargs
    settings = translate(given, names, ignored=("include_slices", "name"), only={"num_passes": (1,)})
    inputs, labels = multi_query_recall(settings.pop("count"), **settings)
    return {"inputs": inputs, "labels": labels}


def torch_copying_data(fixture: Fixture) -> dict[str, Any]:
    """`torch_copying_data`; its seed stands among our arguments, for the published function takes none."""
    names = {"L": "noise_length", "M": "memorize", "A": "vocab_size", "variable": "selective"}
    given = {"variable": False} | fixture.kwargs
    no = (False,)
    settings = translate(
        given, names, ignored=("batch_shape",), only={"variable_length": no, "one_hot": no, "reverse": no}
    )
    seed = fixture.data["ours"]["kwargs"].get("seed", 0)
    inputs, targets = copying(fixture.outputs["inputs"][0], **settings, seed=seed)
    return {"inputs": inputs, "targets": targets}


ADAPTERS = {
    "src.dataloaders.synthetics.ICLDataModule.generate_example": in_context,
    "zoology.data.multiquery_ar.multiquery_ar": multiquery_ar,
    "src.dataloaders.datasets.copying.torch_copying_data": torch_copying_data,
}
