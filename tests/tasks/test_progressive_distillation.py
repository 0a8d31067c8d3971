"""Chains of students: the loss, smaller models of a family, a run from start to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import statescan
from statescan import data, models, tasks
from statescan.cli import main
from statescan.tasks._distillation import best_weights, distillation_loss, sample_weights, soft_loss
from statescan.tasks._students import image_flops, shrink
from statescan.tasks.progressive_distillation import ImageBatches, ImageSet, join, read_labelled_images, weighted_loss

SMALL = type(models.model_info("vim_tiny").config)(dim=64, depth=3, patch=4, image_size=16)


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_soft_loss_is_the_divergence_and_has_its_gradient(tau):
    teacher, student = 3 * scores(6, 10), 3 * scores(6, 10, seed=1)
    leaf, other = (student.clone().requires_grad_() for _ in range(2))
    ours = soft_loss(teacher, leaf, tau).mean()
    theirs = tau**2 * F.kl_div(F.log_softmax(other / tau, -1), F.softmax(teacher / tau, -1), reduction="batchmean")
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    assert soft_loss(teacher, teacher, tau).abs().max() < 1e-5


def test_alpha_1_is_plain_training_and_0_the_teachers_word_alone():
    teacher, student, targets = scores(6, 10), scores(6, 10, seed=1), torch.arange(6)
    torch.testing.assert_close(
        distillation_loss(student, teacher, targets, alpha=1.0), F.cross_entropy(student, targets, reduction="none")
    )
    torch.testing.assert_close(
        distillation_loss(student, teacher, targets, tau=3.0, alpha=0.0), soft_loss(teacher, student, 3.0)
    )
    model = statescan.create_model("vim_tiny", dim=8, depth=1, patch=4, image_size=8, num_classes=10, in_channels=1)
    batch = {"inputs": scores(6, 1, 8, 8), "targets": targets, "soft": teacher, "weights": torch.ones(6)}
    found = []
    for measure in (weighted_loss(tau=4.0, alpha=1.0), None):
        model.zero_grad()
        loss = (
            measure(model, batch, None)[0]
            if measure
            else F.cross_entropy(model(batch["inputs"]), targets, reduction="sum")
        )
        loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_samples_weigh_more_where_the_ensemble_is_wrong():
    teacher = 4 * F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    ensemble = torch.stack([teacher[0], torch.zeros(3), -teacher[2]])
    weights = sample_weights(teacher, ensemble, eta=1.0)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] < weights[1] < weights[2]
    assert torch.equal(sample_weights(teacher, ensemble, eta=0.0), torch.ones(3))
    many = torch.cat([teacher[:1].expand(99, 3), teacher[2:]])
    wrong = torch.cat([teacher[:1].expand(99, 3), -40 * teacher[2:]])
    assert sample_weights(many, wrong, eta=1.0, limit=5.0).max() < 5


def test_the_students_weight_lowers_the_loss_most():
    targets = torch.arange(40) % 5
    before, student = scores(40, 5), scores(40, 5, seed=2) + 2 * F.one_hot(targets, 5)

    def loss(a, b):
        return float(F.cross_entropy(a * before + b * student, targets))

    a, b = best_weights(before, student, targets)
    assert loss(a, b) <= min(loss(x, y) for x in np.linspace(0.01, 4, 40) for y in np.linspace(0, 8, 81)) + 1e-6
    assert loss(a, b) < loss(1.0, 0.0)
    # From nothing, the scale is free and 1; a student that is always wrong is left out.
    assert best_weights(torch.zeros(40, 5), student, targets)[0] == 1.0
    sure = 2 * F.one_hot(targets, 5).float()
    _, wrong = best_weights(3 * sure, -sure, targets)
    assert wrong == 0.0


def test_a_blocks_operations_are_counted_by_hand():
    """A Vim block of width d on L tokens: both ways have a convolution, three projections and a scan of their own."""
    d, inner, states, rank, kernel, length = 16, 32, 4, 1, 4, 4 + 1
    fields = dict(dim=d, patch=4, image_size=8, in_channels=1, num_classes=10, state_dim=states)
    costs = [image_flops("vim", type(SMALL)(**fields, depth=depth)) for depth in (1, 2)]
    outer = 2 * length * (d * 2 * inner + inner * d)
    one_way = 2 * length * (inner * kernel + inner * (rank + 2 * states) + rank * inner)
    scan = 9 * length * inner * states
    assert costs[1] - costs[0] == outer + 2 * (one_way + scan)
    embedding, head = 2 * 4 * (4 * 4 * d), 2 * d * 10
    assert costs[0] == embedding + head + costs[1] - costs[0]


@pytest.mark.parametrize(
    ("name", "changed", "shares"),
    [
        ("vim_tiny", {"dim", "depth"}, (0.1, 0.4)),
        ("vmamba_tiny", {"dims", "depths"}, (0.1, 0.4)),
        ("efficient_vim_tiny", {"widths", "depths"}, (0.4, 0.7)),
        ("plainmamba_tiny", {"dim", "depth"}, (0.7, 0.9)),
    ],
)
def test_students_of_any_family_keep_to_their_share(name, changed, shares):
    found = models.model_info(name)
    config = SMALL if name == "vim_tiny" else found.config
    whole = image_flops(found.family, config)
    students = [shrink(found.family, config, share) for share in shares]
    for share, student in zip(shares, students, strict=True):
        assert student.flops == image_flops(found.family, student.config)
        assert 0.3 * share < student.fraction == student.flops / whole <= share
        assert set(student.fields) == changed
    assert students[0].flops < students[1].flops


def test_a_share_that_is_too_small_is_told():
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        shrink("vim", SMALL, 1.0)
    with pytest.raises(ValueError, match=r"no 'vim' model costs 0.00% of the large one; the cheapest costs \d\.\d+%"):
        shrink("vim", SMALL, 1e-5)
    with pytest.raises(ValueError, match="'mamba' is no family of image models with a width and a depth"):
        shrink("mamba", models.model_info("mamba_tiny").config, 0.5)


def test_strokes_are_the_same_for_a_seed():
    images, labels = data.stroke_digits(30, seed=3)
    again, _ = data.stroke_digits(40, seed=3)
    assert torch.equal(images, again[:30])
    assert images.shape == (30, 1, 28, 28)
    assert images.min() >= 0 and images.max() <= 1
    assert 5 < len(labels.unique()) <= 10
    assert not torch.equal(images, data.stroke_digits(30, seed=4)[0])
    with pytest.raises(ValueError, match="at least 1 and 8, got 5 and 4"):
        data.stroke_digits(5, size=4)


def test_batches_depend_on_seed_and_number_alone():
    images = ImageSet(scores(20, 1, 4, 4), torch.arange(20) % 3)
    first = iter(ImageBatches(images, batch_size=6, classes=3, seed=1))
    later = iter(ImageBatches(images, batch_size=6, classes=3, seed=1, first=4))
    batches = [next(first) for _ in range(5)]
    assert torch.equal(batches[4].inputs, next(later).inputs)
    assert batches[0].soft.shape == (6, 3)
    assert torch.equal(batches[0].weights, torch.ones(6))
    assert sum(len(batch.targets) for batch in ImageBatches(images, batch_size=6, classes=3, once=True)) == 20


@pytest.fixture
def bars(tmp_path):
    """Bars that lie or stand: learnt in a few steps."""
    generator = np.random.default_rng(0)
    images, targets = np.zeros((120, 8, 8), dtype=np.float32), generator.integers(0, 2, 120)
    for image, target in zip(images, targets, strict=True):
        place = generator.integers(8)
        image[(place, slice(None)) if target else (slice(None), place)] = 1
    np.savez(tmp_path / "bars.npz", images=images, targets=targets)
    return tmp_path


def settings(folder, **changes):
    base = dict(
        data=str(folder / "bars.npz"),
        out=folder / "chain",
        model="vim_tiny",
        set=("dim=16", "depth=2", "patch=4", "state_dim=4"),
        fractions=(0.15, 0.4),
        steps=25,
        warmup=3,
        batch_size=32,
        learning_rate=1e-2,
        log_every=25,
        progress=False,
    )
    return tasks.DistillationTraining(**(base | changes))


def test_a_chain_from_start_to_end_and_again(bars):
    result = tasks.train_distillation(settings(bars))
    assert result.images == (82, 14, 24)
    assert result.teacher_accuracy > 0.8
    assert [link.fraction <= share for link, share in zip(result.links, (0.15, 0.4), strict=True)] == [True, True]
    assert result.links[1].chain_fraction == pytest.approx(sum(link.fraction for link in result.links))
    assert (bars / "chain" / "accuracy.png").is_file()
    assert json.loads((bars / "chain" / "chain.json").read_text())["teacher_flops"] == result.teacher_flops
    # The chain is one model that can be stopped after any member.
    chain = statescan.load(bars / "chain")
    images = scores(3, 1, 8, 8)
    each = chain.forward_each(images)
    assert each.shape == (2, 3, 2)
    torch.testing.assert_close(each[-1], chain(images))
    torch.testing.assert_close(each[0], chain(images, members=1))
    own = statescan.load(bars / "chain" / "student_1")
    torch.testing.assert_close(each[0], result.links[0].weight * own(images))
    # A finished run is read again; so is one whose last student is missing.
    with pytest.raises(ValueError, match="already holds a run"):
        tasks.train_distillation(settings(bars))
    (bars / "chain" / "student_2" / "finished.json").unlink()
    again = tasks.train_distillation(settings(bars, resume=True))
    assert again.links == result.links
    # With a teacher that is there already.
    taught = tasks.train_distillation(
        settings(bars, out=bars / "taught", teacher=bars / "chain" / "teacher", fractions=(0.15,), steps=3)
    )
    assert taught.teacher_accuracy == result.teacher_accuracy
    assert not (bars / "taught" / "teacher").exists()


def test_members_are_summed_and_can_be_left_out():
    members = [
        statescan.create_model("vim_tiny", dim=8, depth=depth, patch=4, image_size=8, num_classes=3).eval()
        for depth in (1, 2)
    ]
    chain = join(members, [0.5, 2.0])
    images = scores(2, 3, 8, 8)
    torch.testing.assert_close(chain(images), 0.5 * members[0](images) + 2 * members[1](images))
    assert chain.forward_features(images).shape == (2, 2, 3)
    torch.testing.assert_close(chain.forward_head(chain.forward_features(images)), chain(images))
    with pytest.raises(ValueError, match="members: from 1 to 2, got 3"):
        chain(images, members=3)
    with pytest.raises(ValueError, match=r"images: .*3 channels"):
        chain(images[:, :1])
    with pytest.raises(NotImplementedError, match="no feature maps"):
        chain.forward_maps(images)
    with pytest.raises(ValueError, match="num_classes=3 as the chain has, got 5 at 1"):
        join([members[0], statescan.create_model("vim_tiny", dim=8, depth=1, patch=4, num_classes=5)], [1.0, 1.0])
    with pytest.raises(ValueError, match="at least one"):
        models.build_model("anytime_ensemble", {"members": ()})
    with pytest.raises(ValueError, match="dictionaries of family and config, got"):
        models.build_model("anytime_ensemble", {"members": ({"family": "vim"},)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(fractions=(0.1, 1.5)), "fractions: at least one, all between 0 and 1"),
        (dict(tau=0.0), "tau, alpha, eta: positive, from 0 to 1, at least 0"),
        (dict(alpha=1.2), "tau, alpha, eta"),
        (dict(student_steps=0), "student_steps: expected at least 1"),
        (dict(mixer="s4"), "image models have parts of their own in place of one"),
        (dict(devices=2), "one process trains a chain, got 2 and 1"),
        (dict(test_fraction=0.0), "test_fraction: expected a number between 0 and 1"),
        (dict(model="mamba_tiny"), "'mamba_tiny' reads no images; try --model vim_tiny"),
        (dict(data="letters"), "data: digits, strokes, or a .npz file, got 'letters'"),
        (dict(fractions=(1e-5,)), "no 'vim' model costs 0.00% of the large one"),
    ],
)
def test_settings_that_do_not_fit_are_refused(bars, changes, message):
    with pytest.raises(ValueError, match=message):
        tasks.train_distillation(settings(bars, **changes))
    assert not (bars / "chain").exists()


def test_files_that_are_no_images_are_refused(tmp_path):
    np.savez(tmp_path / "names.npz", pictures=np.zeros((10, 8, 8)))
    with pytest.raises(ValueError, match="needs arrays images and targets, has pictures"):
        read_labelled_images(str(tmp_path / "names.npz"))
    np.savez(tmp_path / "few.npz", images=np.zeros((10, 8, 8)), targets=np.zeros(9, dtype=int))
    with pytest.raises(ValueError, match=r"got \(10, 1, 8, 8\) and \(9,\)"):
        read_labelled_images(str(tmp_path / "few.npz"))
    np.savez(tmp_path / "kind.npz", images=np.zeros((10, 8, 8)), targets=np.zeros(10))
    with pytest.raises(ValueError, match="targets are whole numbers from 0, got float64"):
        read_labelled_images(str(tmp_path / "kind.npz"))
    images, classes = read_labelled_images("digits", size=16)
    assert images.inputs.shape == (1797, 1, 16, 16)
    assert classes == 10


def test_the_command_prints_the_chain(bars, capsys):
    line = [
        "train",
        "distillation",
        "--data",
        str(bars / "bars.npz"),
        "--out",
        str(bars / "run"),
        "--model",
        "vim_tiny",
    ]
    line += [
        "--set",
        "dim=8",
        "depth=1",
        "patch=4",
        "state_dim=2",
        "--fractions",
        "0.5",
        "--steps",
        "2",
        "--no-progress",
    ]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "24 test images" in out
    assert "student 1" in out
    assert main([*line, "--resume", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["links"]) == 1
