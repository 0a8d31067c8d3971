"""Files as users have them: whole, in shards, cut short, hostile, or in the wrong place. Each has one clear error."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

import statescan
from statescan import checkpoints, models


@pytest.fixture
def model():
    return statescan.create_model("mamba_tiny", dim=16, depth=2).eval()


def logits(model):
    return model(torch.arange(12)[None])[0]


@pytest.mark.parametrize("layout", ["statescan", "state-spaces", "huggingface"])
@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny"])
def test_every_layout_both_ways(name, layout, tmp_path):
    options = dict(dim=32, depth=2, state_dim=8) | (dict(head_dim=8, groups=2) if name == "mamba2_tiny" else {})
    first = statescan.create_model(name, **options).eval()
    checkpoints.save(first, tmp_path / "m", layout=layout)
    second = checkpoints.load(tmp_path / "m")
    assert torch.equal(logits(second), logits(first))
    expected = layout if layout != "huggingface" else first.family
    assert checkpoints.detect(tmp_path / "m") == expected


def test_a_hybrid_of_the_state_spaces_layout(tmp_path):
    first = statescan.create_model(
        "mamba2_tiny",
        dim=32,
        depth=3,
        head_dim=8,
        mlp_dim=16,
        attention_layers=(1,),
        attention=dict(heads=4, kv_heads=2, head_dim=6, conv_kernel=4, rotary_dim=4),
    ).eval()
    checkpoints.save(first, tmp_path / "m", layout="state-spaces")
    second = checkpoints.load(tmp_path / "m")
    assert torch.equal(logits(second), logits(first))
    with pytest.raises(ValueError, match=r"cannot express attention_layers=\(1,\)"):
        checkpoints.save(first, tmp_path / "h", layout="huggingface")


def test_named_models_take_weights_files(model, tmp_path):
    model.save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    again = statescan.create_model("mamba_tiny", checkpoint=weights, dim=16, depth=2).eval()
    assert torch.equal(logits(again), logits(model))
    published = models.family("mamba").to_published(model.state_dict(), model.config)
    torch.save({"state_dict": published}, tmp_path / "w.bin")
    again = statescan.create_model("mamba_tiny", checkpoint=tmp_path / "w.bin", dim=16, depth=2).eval()
    assert torch.equal(logits(again), logits(model))


def test_a_tied_head_is_written_once_and_stays_tied(model, tmp_path):
    model.save(tmp_path / "m")
    loaded = checkpoints.load(tmp_path / "m")
    assert loaded.head.weight is loaded.embedding.weight
    assert "head.weight" not in checkpoints.read_tensors(tmp_path / "m")


def test_shards_come_and_go(model, tmp_path):
    checkpoints.save(model, tmp_path / "m", max_shard_bytes=10_000)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(checkpoints.load(tmp_path / "m")), logits(model))
    model.norm.weight.data.add_(1)
    model.save(tmp_path / "m")
    assert torch.equal(logits(checkpoints.load(tmp_path / "m")), logits(model))


def test_dtype_of_loaded_weights(model, tmp_path):
    model.save(tmp_path / "m")
    loaded = checkpoints.load(tmp_path / "m", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert logits(loaded).dtype == torch.bfloat16


def test_convert_keeps_the_tokenizer(model, tmp_path):
    model.save(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(_tokenizer_json())
    checkpoints.convert(tmp_path / "m", tmp_path / "h", layout="huggingface")
    assert checkpoints.load_tokenizer(tmp_path / "h").encode("ab") == [0, 1]
    with pytest.raises(ValueError, match="is the source; give another folder"):
        checkpoints.convert(tmp_path / "m", tmp_path / "m", layout="huggingface")


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_each_tensor_that_does_not_fit_is_named(model, tmp_path):
    tensors = dict(model.state_dict())
    tensors["stack.blocks.7.norm.weight"] = tensors.pop("stack.blocks.1.norm.weight").clone()
    tensors["norm.weight"] = torch.ones(17)
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError) as error:
        checkpoints.load_weights(model, tmp_path / "w.safetensors")
    message = str(error.value)
    assert "3 tensors do not fit this mamba model" in message
    assert "missing: stack.blocks.1.norm.weight" in message
    assert "unexpected: stack.blocks.7.norm.weight" in message
    assert "shape of norm.weight: (17,), this model has (16,)" in message


def test_nan_in_weights_is_named(model, tmp_path):
    model.save(tmp_path / "m")
    tensors = checkpoints.read_tensors(tmp_path / "m")
    tensors["stack.blocks.0.mixer.A_log"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match=r"NaN or infinity in stack\.blocks\.0\.mixer\.A_log; the file is damaged"):
        checkpoints.load(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_a_safetensors_file_cut_short(model, tmp_path, keep):
    model.save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"is no whole safetensors file .*was its download interrupted\?"):
        checkpoints.load(tmp_path / "m")


def test_a_pickle_cut_short(model, tmp_path):
    checkpoints.save(model, tmp_path / "m", layout="state-spaces")
    file = tmp_path / "m" / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no whole weights file"):
        checkpoints.load(tmp_path / "m")


class _Code:
    def __reduce__(self):
        return os.system, ("echo executed > executed.txt",)


def test_a_pickle_with_code_is_refused_and_does_not_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(model, tmp_path / "m", layout="state-spaces")
    torch.save({"a": torch.ones(1), "b": _Code()}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="loading it would run its code .*ask its authors for safetensors"):
        checkpoints.load(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(ValueError, match="was not loaded"):
        checkpoints.load(tmp_path / "m")
    assert not (tmp_path / "executed.txt").exists()


def test_an_interrupted_download(model, tmp_path):
    checkpoints.save(model, tmp_path / "m", max_shard_bytes=10_000)
    victims = sorted((tmp_path / "m").glob("model-*.safetensors"))[1:3]
    for victim in victims:
        victim.rename(victim.with_name(victim.name + ".incomplete"))
    with pytest.raises(FileNotFoundError) as error:
        checkpoints.load(tmp_path / "m")
    assert all(victim.name in str(error.value) for victim in victims)
    assert "Fetch it again" in str(error.value)
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="is an interrupted download: fetch it again"):
        checkpoints.load(tmp_path / "m")


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not JSON"), ("[1]", "holds no JSON object"), ("{}", "of no known layout"),
    ('{"model_type": "gpt2"}', "model type 'gpt2'; known: mamba, mamba2"),
])  # fmt: skip
def test_configs_that_are_none(model, tmp_path, content, message):
    model.save(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "m")


def test_a_config_that_does_not_fit_its_weights(model, tmp_path):
    model.save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["config"]["state_dim"] = 8
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"shape of stack\.blocks\.0\.mixer\.A_log: \(32, 16\), this model has \(32, 8\)"
    ):
        checkpoints.load(tmp_path / "m")


def test_places_where_nothing_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .* no hub id of the form owner/name"):
        checkpoints.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="the hub gave nothing under this id"):
        checkpoints.load("nobody/nothing", local_files_only=True)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        checkpoints.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        checkpoints.load(tmp_path / "file")
    with pytest.raises(ValueError, match="has no known ending"):
        checkpoints.read_tensors(tmp_path / "file")


def test_a_place_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        model.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot write .*what was there is unchanged"):
        model.save(tmp_path / "file" / "below")


def test_a_full_disk_keeps_the_checkpoint_that_was_there(model, tmp_path, monkeypatch):
    model.save(tmp_path / "m")
    before = logits(model)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    model.norm.weight.data.add_(1)
    with pytest.raises(ValueError, match="No space left on device; what was there is unchanged"):
        model.save(tmp_path / "m")
    assert torch.equal(logits(checkpoints.load(tmp_path / "m")), before)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_unknown_layouts_are_named(model, tmp_path):
    with pytest.raises(ValueError, match="unknown 'gguff'; known: statescan"):
        checkpoints.save(model, tmp_path / "m", layout="gguff")
    hybrid = statescan.create_model("hybrid_tiny", dim=32, depth=2)
    with pytest.raises(ValueError, match="hybrid has no Hugging Face form"):
        checkpoints.save(hybrid, tmp_path / "m", layout="huggingface")


def _tokenizer_json(words=("a", "b")):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer.to_str()


def test_tokenizers(model, tmp_path):
    bytes_ = checkpoints.load_tokenizer()
    assert bytes_.decode(bytes_.encode("Größe")) == "Größe"
    assert bytes_.decode([0xC3]) == "\ufffd"
    checkpoints.check_tokenizer(bytes_, model)
    (tmp_path / "tokenizer.json").write_text(_tokenizer_json([chr(0x4E00 + i) for i in range(300)]))
    large = checkpoints.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="it has 300 tokens, the model embeds 256"):
        checkpoints.check_tokenizer(large, model)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer file"):
        checkpoints.load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="for bytes say 'bytes'"):
        checkpoints.load_tokenizer(tmp_path / "none")
