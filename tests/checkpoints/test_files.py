"""Weights files as users have them: whole, in shards, cut short, hostile. Each damage has one clear error."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

import statescan
from statescan import checkpoints, models
from tests.checkpoints._folders import same_weights, small


@pytest.fixture
def model():
    return small()


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def pickled(model, tmp_path):
    checkpoints.save(model, tmp_path / "p", layout="state-spaces")
    return tmp_path / "p"


def test_named_models_take_weights_files(model, folder, pickled, tmp_path):
    def filled(path):
        return statescan.create_model("mamba_tiny", checkpoint=path, dim=32, depth=2).eval()

    published = models.family("mamba").to_published(model.state_dict(), model.config)
    torch.save({"state_dict": published, "step": 3}, tmp_path / "w.ckpt")
    torch.save(published, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    checkpoints.save(model, tmp_path / "h", layout="huggingface", max_shard_bytes=9_000)
    files = [folder / "model.safetensors", tmp_path / "w.ckpt", tmp_path / "old.pth", pickled / "pytorch_model.bin"]
    for path in [*files, folder, pickled, tmp_path / "h", tmp_path / "h" / "model.safetensors.index.json"]:
        assert same_weights(filled(path), model), path


def test_pickles_may_be_in_shards(model, pickled):
    tensors = checkpoints.read_tensors(pickled)
    names = list(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, held in halves.items():
        torch.save({name: tensors[name].clone() for name in held}, pickled / file)
    table = {name: file for file, held in halves.items() for name in held}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    (pickled / "pytorch_model.bin").unlink()
    assert same_weights(checkpoints.load(pickled), model)


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_each_tensor_that_does_not_fit_is_named(model, folder):
    tensors = dict(model.state_dict())
    del tensors["head.weight"]
    tensors["stack.blocks.7.norm.weight"] = tensors.pop("stack.blocks.1.norm.weight").clone()
    tensors["norm.weight"] = torch.ones(17)
    save_file(tensors, folder / "model.safetensors")
    for load in (checkpoints.load, lambda path: checkpoints.load_weights(model, path)):
        with pytest.raises(ValueError) as error:
            load(folder)
        message = str(error.value)
        assert "3 tensors do not fit this mamba model" in message
        assert "missing: stack.blocks.1.norm.weight" in message
        assert "unexpected: stack.blocks.7.norm.weight" in message
        assert "shape of norm.weight: (17,), this model has (32,)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_hold_no_number_are_named_as_in_the_file(folder, pickled, value):
    tensors = {name: tensor.clone() for name, tensor in checkpoints.read_tensors(folder).items()}
    tensors["stack.blocks.0.mixer.A_log"][0, 0] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"NaN or infinity in stack\.blocks\.0\.mixer\.A_log; the file is damaged"):
        checkpoints.load(folder)
    tensors = {name: tensor.clone() for name, tensor in checkpoints.read_tensors(pickled).items()}
    for name in ("backbone.layers.1.mixer.A_log", "backbone.norm_f.weight"):
        tensors[name].view(-1)[-1] = value
    torch.save(tensors, pickled / "pytorch_model.bin")
    broken = r"NaN or infinity in backbone\.norm_f\.weight, backbone\.layers\.1\.mixer\.A_log; the file is damaged"
    with pytest.raises(ValueError, match=broken):
        checkpoints.load(pickled)


def test_a_checkpoint_of_another_model_says_what_it_is(folder, tmp_path):
    larger = statescan.create_model("mamba_tiny")
    with pytest.raises(ValueError, match=r"do not fit .*is that of a mamba model; statescan\.load\('.*'\) builds it"):
        checkpoints.load_weights(larger, folder / "model.safetensors")
    checkpoints.save(larger, tmp_path / "h", layout="huggingface")
    with pytest.raises(ValueError, match=r"do not fit .*\. The config beside it is that of 'mamba_tiny'$"):
        statescan.create_model("mamba_small", checkpoint=tmp_path / "h")


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_a_safetensors_file_cut_short(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=rf"\({keep:,} bytes\) is no whole safetensors file .*interrupted\? Fetch it again"
    ):
        checkpoints.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_pickle_cut_short(pickled, keep):
    file = pickled / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' .*(no whole weights file|was not loaded)"):
        checkpoints.load(pickled)


class _Code:
    def __reduce__(self):
        return os.system, ("echo executed > executed.txt",)


def test_a_pickle_with_code_is_refused_and_does_not_run(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = pickled / "pytorch_model.bin"
    torch.save({"a": torch.ones(1), "b": _Code()}, file)
    with pytest.raises(ValueError, match=r"loading it would run its code .*ask its authors for safetensors"):
        checkpoints.load(pickled)
    file.write_bytes(pickle.dumps({"a": _Code()}))
    with pytest.raises(ValueError, match="was not loaded, since loading it would run its code"):
        checkpoints.load(pickled)
    assert not (tmp_path / "executed.txt").exists()


def test_a_pickle_of_something_else(pickled):
    torch.save({"epoch": 3}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no dictionary of tensors"):
        checkpoints.load(pickled)


def test_an_interrupted_download(model, tmp_path):
    folder = tmp_path / "m"
    checkpoints.save(model, folder, max_shard_bytes=10_000)
    victims = sorted(folder.glob("model-*.safetensors"))[1:3]
    for victim in victims:
        victim.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of \d+ shards: .*interrupted\? Fetch it again") as error:
        checkpoints.load(folder)
    assert all(victim.name in str(error.value) for victim in victims)
    left = folder / ".cache" / "huggingface" / "download" / "x.incomplete"  # what `hf download --local-dir` leaves
    left.parent.mkdir(parents=True)
    left.write_bytes(b"part")
    with pytest.raises(
        FileNotFoundError, match=r"its download was interrupted \(there is x\.incomplete\): fetch it again"
    ):
        checkpoints.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds none of model\.safetensors, .*its download was interrupted"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"norm.weight": 3}}, "has no weight_map"),
        ({"weight_map": {"norm.weight": "../m/model.safetensors"}}, "names files outside its folder"),
        ({"weight_map": {"other.weight": "part.safetensors"}}, "lists tensors that no shard holds: other.weight"),
    ],
)
def test_an_index_that_is_none(folder, index, message):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ("{}", "of no known layout"),
        ('{"model_type": "gpt2"}', "model type 'gpt2'; known: mamba, mamba2"),
        ('{"statescan": "9.0"}', "lacks 'family' or 'config'"),
        ('{"statescan": "9.0", "family": "mambo", "config": {}}', "written by statescan 9.0: .*nearest: 'mamba'"),
        ('{"statescan": "9.0", "family": "mamba", "config": {"dimm": 3}}', "unknown option 'dimm'; nearest: 'dim'"),
    ],
)
def test_a_config_that_is_none(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(folder)


def test_places_where_nothing_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .* no hub id of the form owner/name"):
        checkpoints.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; .*create_model\(name, checkpoint=path\)"):
        checkpoints.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        checkpoints.load(tmp_path / "file")
    with pytest.raises(ValueError, match=r"has no known ending; known: \.safetensors, \.bin"):
        checkpoints.read_tensors(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="no file"):
        statescan.create_model("mamba_tiny", checkpoint=tmp_path / "none.bin")
