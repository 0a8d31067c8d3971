"""`statescan convert`: layouts in and out, and what it says to bad input."""

import json

import pytest
import torch

import statescan
from statescan import checkpoints
from statescan.cli import main
from tests.checkpoints._folders import edit_config, same_weights, small


@pytest.fixture
def source(tmp_path):
    tokenizer = checkpoints.ByteTokenizer(["<end>"])
    checkpoints.save(small(), tmp_path / "source", layout="huggingface", tokenizer=tokenizer)
    edit_config(tmp_path / "source", eos_token_id=7, bos_token_id=0)
    (tmp_path / "source" / "generation_config.json").write_text('{"top_p": 0.9}')
    return tmp_path / "source"


def test_through_every_layout_and_back(source, tmp_path, capsys):
    places = [source]
    for layout in ("statescan", "state-spaces", "huggingface"):
        places.append(tmp_path / layout)
        assert main(["convert", str(places[-2]), str(places[-1]), "--to", layout]) == 0
        found = {"huggingface": "mamba"}.get(layout, layout)
        assert checkpoints.detect(places[-1]) == found
        assert capsys.readouterr().out.endswith(f"-> {places[-1]} ({layout})\n")
        assert checkpoints.load_tokenizer(places[-1]).specials == ("<end>",)
        assert json.loads((places[-1] / "generation_config.json").read_text()) == {"top_p": 0.9}
    assert same_weights(statescan.load(places[-1]), statescan.load(source))
    config = json.loads((places[-1] / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (7, 0)


def test_shards_and_dtype(source, tmp_path):
    target = tmp_path / "target"
    statescan.create_model("mamba_tiny", dim=256, depth=2).save(source)
    assert main(["convert", str(source), str(target), "--max-shard-megabytes", "1", "--dtype", "bfloat16"]) == 0
    assert len(list(target.glob("model-*.safetensors"))) == 2
    assert statescan.load(target, dtype="auto").embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "SOURCE"], "is the source; give another folder"),
        (["none", "TARGET"], "no folder 'none', and it is no hub id"),
        (["SOURCE", "TARGET", "--to", "onnx"], "invalid choice 'onnx'"),
        (["SOURCE", "TARGET", "--to", "gguf"], "a GGUF file ends in .gguf, got"),
        (["SOURCE", "TARGET", "--from", "gguf"], "from: a GGUF file ends in .gguf, got"),
        (["SOURCE", "TARGET", "--max-shard-megabytes", "0"], "max-shard-megabytes: at least 1, got 0"),
        (["SOURCE", "SOURCE/config.json"], "is a file; give a folder"),
    ],
)
def test_bad_input_is_one_line(source, tmp_path, arguments, message, capsys):
    given = [argument.replace("SOURCE", str(source)).replace("TARGET", str(tmp_path / "t")) for argument in arguments]
    assert main(["convert", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
