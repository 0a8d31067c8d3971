"""Training, evaluating and using image classifiers."""

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import statescan
from statescan import data, tasks
from statescan.cli import main
from statescan.tasks._averaging import WeightAverage
from statescan.tasks._image_augmentation import Augmentation
from statescan.tasks._image_recipes import RECIPES
from statescan.tasks._layer_decay import layer_groups, layer_numbers
from statescan.tasks._teacher import Distillation
from statescan.tasks.classification import image_measure, image_models
from statescan.tasks.image_scores import score_images
from statescan.tasks.methods import TrainingMethod, make_methods, register_method


@pytest.fixture
def stripes(tmp_path):
    """Images of upright and lying stripes."""
    generator = np.random.default_rng(0)
    for number in range(24):
        for kind, axis in (("lying", 0), ("upright", 1)):
            wave = 127 + 120 * np.sin(np.arange(16) * 1.6 + generator.uniform(0, 6))
            grid = np.broadcast_to(wave[:, None] if axis == 0 else wave[None], (16, 16))
            path = tmp_path / "photos" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat(grid[..., None], 3, 2).astype(np.uint8)).save(path)
    return tmp_path


def settings(folder, **changes):
    base = dict(
        data=str(folder / "photos"),
        out=folder / "run",
        model="vim_micro",
        set=("dim=16", "depth=1", "state_dim=4"),
        size=16,
        steps=30,
        warmup=3,
        batch_size=12,
        learning_rate=1e-2,
        progress=False,
        accelerator="cpu",
    )
    return tasks.ClassificationTraining(**(base | changes))


def test_classes_are_learnt_and_files_named(stripes, capsys):
    (stripes / "photos" / "lying" / "bad.png").write_text("no image")
    result = tasks.train_classification(settings(stripes, ema=0.9, mixup=0.2, cutmix=0.5, erasing=0.1))
    assert "skipped 1 images that cannot be read" in capsys.readouterr().err
    assert result.test["accuracy"] > 0.85
    run = stripes / "run"
    assert json.loads((run / "test.json").read_text()) == result.test
    with (run / "test_classes.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["lying", "upright"]
    assert (run / "confusion.csv").read_text().startswith("class,lying,upright")
    assert "bad.png" in (run / "skipped.csv").read_text()
    model = statescan.load(run)
    assert model.config.num_classes == 2 and model.config.image_shape == (16, 16)

    assert main(["evaluate", "classification", str(run), "--data", str(stripes / "photos"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] > 0.85 and told["skipped"] == 1 and told["images"] == 48
    assert np.array(told["confusion"]).sum() == 48

    answers = stripes / "answers.csv"
    files = str(stripes / "photos" / "upright")
    assert main(["predict", str(run), files, "--top", "9", "--format", "csv", "--out", str(answers)]) == 0
    with answers.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and sum(row["class_1"] == "upright" for row in rows) > 20
    assert abs(float(rows[0]["probability_1"]) + float(rows[0]["probability_2"]) - 1) < 1e-5
    capsys.readouterr()
    assert main(["predict", str(run)]) == 2
    assert "images: none given" in capsys.readouterr().err
    assert main(["predict", str(run), str(stripes / "photos" / "lying" / "bad.png")]) == 2
    assert "none of 1 files can be read as an image" in capsys.readouterr().err
    assert main(["evaluate", "classification", str(run), "--data", "digits"]) == 2
    assert "class '0' is none of the model's; it knows lying, upright" in capsys.readouterr().err


def test_a_killed_run_goes_on_as_if_nothing_had_been(stripes):
    pytest.importorskip("kornia")
    options = dict(steps=6, checkpoint_every=3, validate_every=3, ema=0.9, augment="randaugment", layer_decay=0.7)
    whole = tasks.train_classification(settings(stripes, out=stripes / "whole", **options))

    class Stop(TrainingMethod):
        def begin(self, step, steps):
            if step == 4:
                raise KeyboardInterrupt

    register_method("stop", Stop)
    with pytest.raises(KeyboardInterrupt):
        tasks.train_classification(settings(stripes, methods=("stop",), **options))
    saved = json.loads((stripes / "run" / "settings.json").read_text())
    (stripes / "run" / "settings.json").write_text(json.dumps(saved | {"methods": []}))
    again = tasks.train_classification(settings(stripes, resume=True, **options))
    assert again.test == whole.test
    for name in ("metrics.csv", "test.json"):
        assert (stripes / "run" / name).read_text() == (stripes / "whole" / name).read_text()


def test_several_classes_an_image(tmp_path, capsys):
    lines = ["image,red,blue"]
    (tmp_path / "photos").mkdir()
    for number in range(24):
        red, blue = number % 2, number // 2 % 2
        Image.new("RGB", (16, 16), (200 * red + 20, 20 + number, 200 * blue + 20)).save(
            tmp_path / f"photos/{number}.png"
        )
        lines.append(f"{number}.png,{red},{blue}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    result = tasks.train_classification(settings(tmp_path, labels=tmp_path / "labels.csv", steps=40))
    assert result.test["auroc"] > 0.9 and result.test["auprc"] > 0.9
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "photos/3.png"), "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    (tmp_path / "kinds" / "red").mkdir(parents=True)
    (tmp_path / "photos/1.png").rename(tmp_path / "kinds/red/1.png")
    assert main(["evaluate", "classification", str(tmp_path / "run"), "--data", str(tmp_path / "kinds")]) == 2
    assert "labelled with one class an image, the model learnt several" in capsys.readouterr().err
    assert {c["name"] for c in answer["classes"]} == {"red", "blue"}


def test_scores_are_those_of_their_definitions():
    class Fixed(nn.Module):
        device = torch.device("cpu")

        def forward(self, images):
            return torch.nn.functional.one_hot((images.mean((1, 2, 3)) * 255).round().long() // 10, 3).float()

    from statescan.tasks._image_preparation import ImagePreparation

    values = [0, 0, 10, 20, 20, 20]
    arrays = [np.full((4, 4, 1), value, dtype=np.uint8) for value in values]
    images = data.LabelledImages(arrays, torch.tensor([0, 1, 1, 2, 2, 0]), ("a", "b", "c"))
    preparation = ImagePreparation((4, 4), (0.0,), (1.0,), images.classes)
    score = score_images(Fixed(), preparation, images, batch_size=4)
    assert score.confusion == [[1, 0, 1], [1, 1, 0], [0, 0, 2]]
    assert score.numbers["accuracy"] == pytest.approx(4 / 6)
    assert score.numbers["balanced_accuracy"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert [row["precision"] for row in score.classes] == pytest.approx([0.5, 1.0, 2 / 3])


def test_a_teacher_is_learnt_from(stripes):
    taught = tasks.train_classification(settings(stripes, out=stripes / "teacher", steps=60))
    options = dict(teacher=str(stripes / "teacher"), distillation_weight=1.0)
    result = tasks.train_classification(settings(stripes, steps=60, **options))
    assert taught.test["accuracy"] > 0.85
    assert result.test["accuracy"] > 0.85, "the labels have no part in this loss"
    with pytest.raises(ValueError, match="teacher: it knows the classes lying, upright …, the data have 0, 1"):
        tasks.train_classification(
            settings(stripes, data="digits", out=stripes / "x", teacher=str(stripes / "teacher"))
        )


def test_distillation_is_its_formula():
    teacher = nn.Linear(4, 3)
    scores, taught = torch.randn(5, 3), torch.randn(5, 3)
    soft = Distillation(teacher, kind="soft", temperature=3.0).against(scores, taught)
    p = (taught / 3).softmax(-1)
    assert soft == pytest.approx(float(9 * (p * (p.log() - (scores / 3).log_softmax(-1))).sum()), rel=1e-4)
    hard = Distillation(teacher, kind="hard").against(scores, taught)
    assert hard == pytest.approx(float(-scores.log_softmax(-1)[range(5), taught.argmax(-1)].sum()), rel=1e-5)
    with pytest.raises(ValueError, match="from 0 to 1, and above 0, got 2 and 1"):
        Distillation(teacher, weight=2, temperature=1)


def test_a_head_for_the_teacher_learns_from_the_teacher():
    torch.manual_seed(0)
    student = statescan.create_model("mobile_mamba_tiny", num_classes=3, distillation=True).train()
    outputs = student(torch.randn(2, 3, 64, 64))
    assert isinstance(outputs, tuple) and len(outputs) == 2
    teacher = statescan.create_model("vim_micro", num_classes=3, dim=16, depth=1)
    method = Distillation(teacher, weight=1.0)
    loss = method.loss(
        torch.zeros(()), model=student, images=torch.randn(2, 3, 64, 64), outputs=outputs, targets=torch.eye(3)[:2]
    )
    loss.backward()
    assert student.head.linear.weight.grad is None and student.distillation_head.linear.weight.grad.abs().sum() > 0


def test_methods_plug_in(stripes):
    seen = {"begin": [], "unwrapped": 0}

    class Notes(TrainingMethod):
        def __init__(self, value="1"):
            self.weight = float(value)

        def wrap(self, model):
            model.marked = True
            return model

        def unwrap(self, model):
            seen["unwrapped"] += model.marked
            return model

        def begin(self, step, steps):
            seen["begin"].append((step, steps))

        def loss(self, loss, *, model, images, outputs, targets):
            assert images.shape == (12, 3, 16, 16) and targets.shape == (12, 2)
            return self.weight * loss

    register_method("notes", Notes)
    tasks.train_classification(settings(stripes, steps=2, methods=("notes=0.5",)))
    assert seen == {"begin": [(0, 2), (1, 2)], "unwrapped": 1}
    with pytest.raises(ValueError, match="methods: unknown 'note'; nearest: 'notes'"):
        make_methods(["note"])


def test_augmentation():
    images = torch.rand(6, 3, 8, 8)
    plain = Augmentation(smoothing=0.2)
    assert plain.change(images) is images
    assert torch.allclose(plain.soften(torch.tensor([1]), 4), torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
    targets = torch.eye(6)
    for kind in ("mixup", "cutmix"):
        torch.manual_seed(1)
        mixed, shares = Augmentation(**{kind: 1.0}).mix(images, targets)
        assert torch.allclose(shares.sum(1), torch.ones(6))
        share = float(shares[0, 0])
        if kind == "mixup":
            assert torch.allclose(mixed, share * images + (1 - share) * images.flip(0))
        else:
            own = (mixed == images).all(1).float().mean((1, 2))
            assert torch.allclose(own, torch.full((6,), share), atol=1e-6), "the targets are the parts of the area"
    with pytest.raises(ValueError, match=r"smoothing: at least 0 and below 1, got 1.5"):
        Augmentation(smoothing=1.5)


@pytest.mark.parametrize("policy", ["randaugment", "autoaugment", "three"])
def test_policies_depend_on_the_seed_alone(policy):
    pytest.importorskip("kornia")
    images, change = torch.rand(9, 3, 16, 16), Augmentation(policy=policy, erasing=0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(change.change(images))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert results[0].min() >= 0 and results[0].max() <= 1
    with pytest.raises(ValueError, match="needs 3 channels, the images have 7"):
        Augmentation(policy=policy).change(torch.rand(2, 7, 8, 8))


def test_the_mean_of_the_weights_is_a_mean():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(0.5)

    class Run:
        global_step = 0

    class Module:
        pass

    run, module = Run(), Module()
    module.model = model
    nn.init.zeros_(model.weight)
    average.on_train_start(run, module)
    nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(1, 15):
        run.global_step = step
        average.on_train_batch_end(run, module, None, None, 0)
        part = 1 - min(0.5, (1 + step) / (10 + step))
        expected += part * (1 - expected)
        assert float(average.mean["weight"]) == pytest.approx(expected, rel=1e-5)
    with average.instead(model):
        assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(model.weight.detach()) == 1.0


@pytest.mark.parametrize("name", ["vim_micro", "vmamba_tiny", "rsmamba_tiny", "mambaout_test"])
def test_layer_decay_falls_from_the_head_to_the_stem(name):
    model = statescan.create_model(name, num_classes=2)
    numbers = layer_numbers(model)
    deepest = max(numbers.values())
    assert numbers["head.weight" if "head.weight" in numbers else "head.output.weight"] == deepest
    assert all(value == 0 for key, value in numbers.items() if key.startswith(("stem", "tokens", "position")))
    assert set(numbers.values()) == set(range(deepest + 1))
    groups = layer_groups(model, model.parameter_groups(0.1), decay=0.5, learning_rate=1.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {0.5**k for k in range(deepest + 1)}


def test_recipes_are_followed_but_for_what_is_given():
    vim = tasks.ClassificationTraining(recipe="vim", model="vim_small", batch_size=64, accumulate=16)
    assert (vim.learning_rate, vim.weight_decay, vim.drop_path, vim.ema) == (1e-3, 0.1, 0.05, 0.99996)
    assert (vim.augment, vim.mixup, vim.cutmix, vim.erasing, vim.repeats) == ("randaugment", 0.8, 1.0, 0.25, 3)
    assert tasks.ClassificationTraining(recipe="vim", mixup=0.3, weight_decay=0.2).mixup == 0.3
    assert tasks.ClassificationTraining(recipe="rsmamba").learning_rate == 5e-4, "not scaled"
    assert vim.for_images(1024).warmup == round(1000 * 5 / 300)
    longer = tasks.ClassificationTraining(epochs=10, batch_size=32).for_images(320)
    assert (longer.steps, longer.validate_every, longer.warmup) == (100, 10, 5)
    for name in RECIPES:
        for model in image_models():
            tasks.ClassificationTraining(recipe=name, model=model)
    with pytest.raises(ValueError, match="recipe: unknown 'vmanba'; nearest: 'vmamba'"):
        tasks.ClassificationTraining(recipe="vmanba")


def test_training_may_begin_with_trained_weights(stripes):
    tasks.train_classification(settings(stripes, out=stripes / "first"))
    third = stripes / "photos" / "grey" / "1.png"
    third.parent.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (90, 90, 90)).save(third.with_name(f"{number}.png"))
    still = dict(weights=str(stripes / "first"), learning_rate=1e-12, steps=1)
    tasks.train_classification(settings(stripes, out=stripes / "second", **still))
    first, second = (statescan.load(stripes / name).state_dict() for name in ("first", "second"))
    assert second["head.weight"].shape[0] == 3
    assert torch.allclose(first["blocks.0.norm.weight"], second["blocks.0.norm.weight"])
    with pytest.raises(
        ValueError, match=r"does not fit 'vim_micro': tokens.position is .* expected .*use the same model"
    ):
        tasks.train_classification(settings(stripes, weights=str(stripes / "first"), size=24, out=stripes / "third"))


def test_mistakes_are_named(stripes):
    with pytest.raises(ValueError, match="model: 'mamba_tiny' is no image model; try --model vim_micro"):
        tasks.train_classification(settings(stripes, model="mamba_tiny", set=()))
    with pytest.raises(ValueError, match="image_size: at least patch=4, got 3"):
        tasks.train_classification(settings(stripes, size=3))
    with pytest.raises(ValueError, match="'local_vmamba_tiny' takes images of at least 4 pixels a side, got 3 x 3"):
        tasks.train_classification(settings(stripes, model="local_vmamba_tiny", set=(), size=3))
    with pytest.raises(ValueError, match="model: 'mhs_vm_tiny' gives no class scores; it is made for another task"):
        tasks.train_classification(settings(stripes, model="mhs_vm_tiny", set=(), size=64))
    with pytest.raises(ValueError, match="mixer: image models have mixers of their own"):
        settings(stripes, mixer="s4")
    with pytest.raises(ValueError, match="ema: from 0 to below 1, got 1"):
        settings(stripes, ema=1.0)
    assert main(["train", "classification", "--data", str(stripes / "none")]) == 2


def test_the_loss_is_that_of_its_targets():
    from statescan.tasks._image_preparation import ImagePreparation

    class Scores(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    preparation = ImagePreparation((4, 4), (0.0,) * 3, (1.0,) * 3, ("a", "b", "c"))
    measure = image_measure(preparation, Augmentation(), [])
    batch = {"images": torch.rand(5, 3, 4, 4), "targets": torch.tensor([0, 1, 2, 0, 1])}
    for training in (True, False):
        loss, sums, _ = measure(Scores().train(training), batch, None)
        wanted = torch.nn.functional.cross_entropy(batch["images"].mean((2, 3)), batch["targets"], reduction="sum")
        assert torch.allclose(loss, wanted) and float(sums[1]) == 5
    several = dataclasses.replace(preparation, multilabel=True)
    batch["targets"] = torch.eye(3)[batch["targets"]]
    loss, _, _ = image_measure(several, Augmentation(), [])(Scores().eval(), batch, None)
    scores = batch["images"].mean((2, 3))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch["targets"]) * 5
    assert torch.allclose(loss, wanted)


@pytest.mark.slow
def test_two_processes_learn_alike_in_copies_and_in_shards(stripes):
    from tests.tasks._runs import finish, start

    rows = {}
    for strategy in ("ddp", "fsdp"):
        out = stripes / strategy
        line = (
            f"train classification --data {stripes}/photos --model vim_micro --set dim=16 depth=1 state_dim=4 --size 16"
        )
        line += f" --steps 4 --checkpoint-every 2 --batch-size 4 --ema 0.9 --devices 2 --strategy {strategy}"
        line += f" --accelerator cpu --no-progress --out {out}"
        finish(start([sys.executable, "-m", "statescan.cli", *line.split()]))
        with (out / "metrics.csv").open() as file:
            rows[strategy] = [[float(cell or 0) for cell in row.values()] for row in csv.DictReader(file)]
    np.testing.assert_allclose(rows["ddp"], rows["fsdp"], rtol=1e-4)
    first, second = (statescan.load(stripes / name).state_dict() for name in rows)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["shuffle=0.5", "prune=0.5@1"])
def test_methods_of_plain_backbones_train_and_save(stripes, method):
    result = tasks.train_classification(settings(stripes, steps=2, methods=(method,), set=("dim=16", "depth=2")))
    assert 0 <= result.test["accuracy"] <= 1
    model = statescan.load(stripes / "run").eval()
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
