"""Training on the Long Range Arena: recipes, what goes before them, and short runs of every task."""

import dataclasses
import json

import pytest

import statescan
from statescan import data, tasks
from statescan.cli import main
from statescan.tasks._lra_recipes import RECIPES, SHORT, family_of
from tests.data import _arena_layouts as layouts

TINY = dict(width=8, depth=1, steps=3, batch_size=4, progress=False)


def settings(folder, task, **changes):
    return tasks.LRATraining(**(dict(task=task, out=folder / "run") | TINY | changes))


@pytest.mark.parametrize(
    ("task", "model", "layout", "changes"),
    [
        ("listops", "s4d", None, dict(length=40, examples=12, test_examples=4)),
        ("listops", "s5", layouts.listops, dict(set=("blocks=1", "state_dim=4"))),
        ("text", "s4", layouts.reviews, dict(length=50)),
        ("text", "long_conv", layouts.review_tables, dict(length=50, level="bytes")),
        ("retrieval", "s4d", layouts.pairs, dict(length=16)),
        ("retrieval", "s5", layouts.pairs, dict(length=16, set=("blocks=1", "state_dim=4"))),
        ("retrieval", "long_conv", layouts.pairs, dict(length=16)),
        ("retrieval", "s4", layouts.pairs, dict(length=16, mixer="mamba")),
        ("image", "s4d", layouts.cifar_python, dict(length=64)),
        ("image", "transformer_classifier_tiny", layouts.cifar_binary, dict(length=64)),
        ("pathfinder", "s4d", None, dict(examples=6)),
        ("pathfinder", "s4", layouts.pathfinder, dict(set=("state_dim=4",))),
        ("pathx", "s4d", None, dict(examples=6, length=1024)),
    ],
)
def test_every_task_runs_small(tmp_path, task, model, layout, changes):
    where = {} if layout is None else {"data": layout(tmp_path)}
    result = tasks.train_lra(settings(tmp_path, task, model=model, **where, **changes))
    assert result.steps == 3 and 0 <= result.test["accuracy"] <= 1
    assert json.loads((tmp_path / "run" / "test.json").read_text()) == result.test
    trained = statescan.load(tmp_path / "run")
    assert trained.config.dim == 8 and trained.config.classes == len(data.ARENA[task].classes)


SLOW = ("A_real=0.001", "A_imag=0.001", "kernel.B=0.001")


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        ("s4", "listops", dict(batch_size=32, steps=120_000, warmup=12_000, learning_rate=0.01, weight_decay=0.05)),
        ("s4d", "pathx", dict(batch_size=16, steps=500_000, warmup=50_000, learning_rate=0.001)),
        ("s4d", "retrieval", dict(batch_size=64, steps=50_000, learning_rates=SLOW)),
        ("s4", "image", dict(batch_size=50, learning_rates=(*SLOW, "inverse_dt=0.001", ".P=0.001"))),
        ("s5", "listops", dict(batch_size=50, steps=76_800, warmup=1_920, learning_rate=0.003, weight_decay=0.04)),
        ("s5", "text", dict(batch_size=50, steps=17_500, warmup=0, learning_rate=0.004)),
        ("long_conv", "retrieval", dict(batch_size=32, accumulate=2, learning_rates=("kernel.taps=0.0001",))),
    ],
)
def test_recipes_are_the_published_ones(model, task, expected):
    found = tasks.LRATraining(task=task, model=model)
    for name, value in expected.items():
        assert getattr(found, name) == (value if isinstance(value, tuple) else pytest.approx(value)), name
    assert found.final_learning_rate == 0 and found.betas == (0.9, 0.999)


def test_what_is_given_goes_before_the_recipe():
    found = tasks.LRATraining(steps=1000, learning_rate=0.5, weight_decay=0.0, learning_rates=())
    assert (found.steps, found.warmup, found.batch_size) == (1000, 100, 32), "the warm-up keeps its share"
    assert (found.learning_rate, found.weight_decay, found.learning_rates) == (0.5, 0.0, ())
    assert tasks.LRATraining(steps=1000, warmup=7).warmup == 7


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_model_and_parameters_that_exist(name):
    from statescan.tasks._module import with_rates
    from statescan.tasks._settings import rates_of

    assert set(RECIPES[name]) == set(data.ARENA) and family_of(name) in SHORT
    for recipe in RECIPES[name].values():
        small = {"blocks": 1, "state_dim": 4} if name == "s5" else {}
        model = statescan.create_model(recipe.model, **(recipe.fields | {"dim": 8, "depth": 1} | small))
        groups = with_rates(model, model.parameter_groups(0.1), rates_of(recipe.settings["learning_rates"]))
        slow = [group for group in groups if "lr" in group]
        assert slow and all(group["weight_decay"] == 0 for group in slow)
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        assert dataclasses.replace(tasks.LRATraining(), **recipe.settings)


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path):
    common = dict(length=40, examples=12, test_examples=4, checkpoint_every=2)
    whole = tasks.train_lra(settings(tmp_path, "listops", out=tmp_path / "whole", steps=4, **common))
    cut = settings(tmp_path, "listops", steps=4, **common)
    tasks.train_lra(cut)
    (tmp_path / "run" / "test.json").unlink()
    again = tasks.train_lra(tasks.LRATraining(out=tmp_path / "run", resume=True, progress=False))
    assert again.test == whole.test and again.steps == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(task="listop"), "task: unknown name 'listop'; nearest: 'listops'"),
        (dict(model="s4dd"), "model: unknown name 's4dd'; nearest: 's4d'; with recipes: s4, s4d, s5, long_conv"),
        (dict(recipe="s4d_lim"), "recipe: unknown name 's4d_lim'; nearest: 's4d_lin'"),
        (dict(model="s5", recipe="s4d_inv"), "recipe: 's4d_inv' is one of --model s4d, not of 's5'"),
        (dict(model="s4d_tiny", recipe="s4d"), "recipe: 's4d_tiny' has none"),
        (dict(width=0), "width: expected at least 1, got 0"),
        (dict(learning_rates=("A_real",)), "learning_rates: expected part=rate with a positive rate, got 'A_real'"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    with pytest.raises(ValueError) as error:
        tasks.LRATraining(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="mamba_tiny"), "model: 'mamba_tiny' is no classifier of sequences; try --model s4d"),
        (
            dict(learning_rates=("A_reel=0.1",)),
            "learning_rates: no parameter's name holds 'A_reel'; their names end in",
        ),
        (dict(set=("stat_dim=4",)), "nearest: 'state_dim'"),
    ],
)
def test_runs_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        tasks.train_lra(settings(tmp_path, "listops", length=40, examples=4, test_examples=2, **changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--task", "text"], "statescan: data: the task 'text' is read from files; give a folder that holds aclImdb"),
        (["--task", "text", "--data", "none"], "statescan: data: there is no folder 'none'; expected aclImdb"),
        (["--task", "lisstops"], "statescan: task: unknown name 'lisstops'; nearest: 'listops'"),
    ],
)
def test_errors_of_the_command_are_one_line(capsys, monkeypatch, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "lra", *arguments]) != 0
    written = capsys.readouterr()
    assert line in written.err and written.err.strip().count("\n") == 0


def test_the_command_trains(capsys, tmp_path):
    words = (
        "train lra --task listops --model s5 --length 40 --width 8 --depth 1 --examples 12 --test-examples 4 --steps 2"
    )
    assert main([*words.split(), "--set", "blocks=1", "--out", str(tmp_path / "run"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2 and set(printed["test"]) == {"accuracy", "loss"}
