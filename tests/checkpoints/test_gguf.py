"""GGUF files: what goes in comes out, in llama.cpp's names and shapes, and what does not fit is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import statescan
from statescan import checkpoints
from statescan.checkpoints import _gguf
from statescan.cli import main

MODELS = {
    "mamba": ("mamba_tiny", dict(vocab_size=250)),
    "mamba, head of its own": ("mamba_tiny", dict(tie_embeddings=False, dt_rank=5, conv_kernel=3, state_dim=8)),
    "falcon_mamba": ("falcon_mamba_tiny", dict(inner_norm_eps=1e-5)),
    "mamba2": ("mamba2_tiny", {}),
    "mamba2, groups": ("mamba2_tiny", dict(groups=2, dim=96, head_dim=16, norm_eps=1e-6)),
}


def build(name):
    family, options = MODELS[name]
    model = statescan.create_model(family, depth=2, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(40).unsqueeze(0))[0]


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2), ("q8_0", 4e-2), ("q4_0", 0.6)]
)
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, dtype, bound, tmp_path):
    model = build(name)
    _gguf.write(model, tmp_path / "model.gguf", dtype=dtype)
    back = statescan.load(tmp_path / "model.gguf")
    assert back.family == model.family and back.config.tie_embeddings == model.config.tie_embeddings
    expected = logits(model)
    assert float((logits(back) - expected).abs().max() / expected.abs().max()) < bound
    if dtype == "float32":
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(back.state_dict()[key], tensor, rtol=1e-6, atol=1e-6)


def test_names_shapes_and_fields_are_llama_cpps(tmp_path):
    import gguf

    _gguf.write(build("mamba2, groups"), tmp_path / "model.gguf", dtype="q8_0")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {
        name.removeprefix("blk.0."): [int(n) for n in t.shape] for name, t in tensors.items() if "blk.1" not in name
    }
    channels = 192 + 2 * 2 * 64
    assert shapes == {  # the fastest axis first
        "token_embd.weight": [96, 256],
        "output_norm.weight": [96],
        "attn_norm.weight": [96],
        "ssm_in.weight": [96, 192 + channels + 12],
        "ssm_conv1d.weight": [4, channels],
        "ssm_conv1d.bias": [channels],
        "ssm_dt.bias": [12],
        "ssm_a": [1, 12],
        "ssm_d": [1, 12],
        "ssm_norm.weight": [96, 2],
        "ssm_out.weight": [192, 96],
    }
    assert tensors["blk.0.ssm_in.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert tensors["blk.0.ssm_conv1d.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert np.all(np.asarray(tensors["blk.0.ssm_a"].data) < 0)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "mamba2"
    assert fields["mamba2.ssm.time_step_rank"] == 12 and fields["mamba2.ssm.group_count"] == 2
    assert fields["tokenizer.ggml.model"] == "no_vocab" and fields["mamba2.vocab_size"] == 256


def test_the_command_takes_the_tokenizer_along(tmp_path, capsys):
    model = build("mamba2")
    tokenizer = checkpoints.ByteTokenizer(["<end>"])
    with pytest.raises(ValueError, match="tokens"):
        checkpoints.check_tokenizer(tokenizer, model)
    model = statescan.create_model("mamba_tiny", depth=2, vocab_size=257).eval()
    checkpoints.save(model, tmp_path / "model", tokenizer=tokenizer)
    file = str(tmp_path / "model.gguf")
    assert main(["convert", str(tmp_path / "model"), file, "--to", "gguf"]) == 0
    assert capsys.readouterr().out.endswith("model.gguf (gguf)\n")
    assert main(["convert", file, str(tmp_path / "back"), "--from", "gguf"]) == 0
    assert checkpoints.load_tokenizer(tmp_path / "back").specials == ("<end>",)
    torch.testing.assert_close(logits(statescan.load(tmp_path / "back")), logits(model), rtol=1e-5, atol=1e-6)
    assert checkpoints.detect(file) == "gguf"


def test_a_byte_level_tokenizer_is_spelled_out(tmp_path):
    import gguf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the state of the state space"] * 9, trainer)
    model = statescan.create_model("mamba_tiny", depth=1, vocab_size=tokenizer.get_vocab_size()).eval()
    checkpoints.save(model, tmp_path / "model")
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    checkpoints.convert(tmp_path / "model", tmp_path / "model.gguf", layout="gguf", dtype="float16")
    fields = {name: f.contents() for name, f in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert len(fields["tokenizer.ggml.tokens"]) == model.config.padded_vocab_size
    assert fields["tokenizer.ggml.tokens"][0] == "<end>" and fields["tokenizer.ggml.token_type"][0] == 3
    assert len(fields["tokenizer.ggml.merges"]) == len(json.loads(tokenizer.to_str())["model"]["merges"])
    checkpoints.convert(tmp_path / "model.gguf", tmp_path / "back", layout="statescan")
    text = "the state of things"
    assert checkpoints.load_tokenizer(tmp_path / "back").encode(text) == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer_tiny", {}, "hybrid has no GGUF form; known for mamba, falcon_mamba, mamba2"),
        ("mamba_tiny", dict(conv_bias=False), "gguf cannot express conv_bias=False"),
        ("mamba_tiny", dict(inner_norm="weighted"), "gguf cannot express inner_norm='weighted'"),
        ("mamba2_tiny", dict(norm_before_gate=True), "gguf cannot express norm_before_gate=True"),
        ("mamba_tiny", dict(mlp_dim=64), "gguf cannot express attention layers, MLPs or LayerNorm"),
    ],
)
def test_what_it_has_no_words_for(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoints.save(statescan.create_model(name, **options), tmp_path / "model.gguf", layout="gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_bad_files_and_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        statescan.load(tmp_path / "none.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense, and not much of it")
    with pytest.raises(ValueError, match="is no complete GGUF file"):
        statescan.load(tmp_path / "broken.gguf")
    whole = tmp_path / "whole.gguf"
    _gguf.write(build("mamba"), whole)
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="is no complete GGUF file"):
        statescan.load(tmp_path / "short.gguf")
    with pytest.raises(ValueError, match=r"a GGUF file ends in \.gguf, got"):
        _gguf.write(build("mamba"), tmp_path / "model.bin")
    with pytest.raises(ValueError, match="dtype: unknown 'q5'; known: float32, float16, bfloat16, q8_0, q4_0"):
        _gguf.write(build("mamba"), whole, dtype="q5")
    with pytest.raises(ValueError, match="dtype: q8_0 is a type of GGUF files only"):
        checkpoints.convert(whole, tmp_path / "out", layout="statescan", dtype="q8_0")
