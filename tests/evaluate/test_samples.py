"""Fréchet distance, precision and recall, and the classifier score, where the answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")
pytest.importorskip("sklearn", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import (
    Features,
    classifier_score,
    frechet,
    frechet_distance,
    inception_features,
    module_features,
    pca_features,
    precision_recall,
    sample_quality,
)
from mmvae_fast.modalities import Text, Vector


def gaussian(rows, mean, root, seed=0):
    """Points whose sample mean and covariance are exactly mean and root root'."""
    x = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return np.asarray(mean) + x @ np.asarray(root).T


def test_distance_of_gaussians_has_its_closed_form():
    """Of commuting covariances: |m - n|^2 + sum (s - t)^2 of the standard deviations."""
    turn = np.array([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    a = gaussian(50, [0, 0], turn @ np.diag([1.0, 2.0]), seed=1)
    b = gaussian(80, [3, -1], turn @ np.diag([2.0, 0.5]), seed=2)
    assert frechet_distance(a, b) == pytest.approx(10 + 1 + 2.25)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_distance_of_covariances_that_do_not_commute_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(30, 5))
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_fewer_rows_than_features_stay_real():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 20)), rng.normal(size=(6, 20))
    assert frechet_distance(a, b) > 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_a_module_as_features_gives_torchmetrics_distance():
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    network.num_features = 6
    real, made = torch.rand(40, 3, 4, 4), torch.rand(40, 3, 4, 4) ** 2
    metric = FrechetInceptionDistance(feature=network, normalize=True)
    metric.update(real, real=True)
    metric.update(made, real=False)
    features = module_features(network, batch_size=7)
    assert features.name == "Sequential"
    assert frechet_distance(features(real), features(made)) == pytest.approx(metric.compute().item(), rel=1e-3)


def test_frechet_reports_the_floor_of_as_many_real_rows():
    g = torch.Generator().manual_seed(0)
    real, same = torch.randn(400, 3, generator=g), torch.randn(300, 3, generator=g)
    features = Features("as they are", lambda x: x.numpy())
    perfect, shifted = frechet(real, same, features), frechet(real, same + 2, features)
    assert perfect.rows == 200 and perfect.features == "as they are"
    assert 0 < perfect.floor < 0.2 and perfect.distance == pytest.approx(perfect.floor, abs=0.1)
    assert shifted.floor == perfect.floor and shifted.distance == pytest.approx(12, abs=2.5)
    assert frechet(real, same, features, seed=1) != perfect
    with pytest.raises(ValueError, match="got 3 real and 300 generated samples"):
        frechet(real[:3], same, features)


def test_principal_components_of_numbers_and_of_tokens():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1, 1, 1, 1, 1])
    features = pca_features(Vector(6), x, components=2)
    assert features.name == "2 principal components" and features(x).shape == (50, 2)
    assert abs(np.corrcoef(features(x)[:, 0], x[:, 0])[0, 1]) > 0.99
    ids = torch.randint(0, 5, (50, 3), generator=torch.Generator().manual_seed(0))
    tokens = pca_features(Text(5, 3), ids)
    assert tokens(ids).shape == (50, 15)  # all there are
    distance = np.square(tokens(ids)[:, None] - tokens(ids)).sum(-1)
    np.testing.assert_allclose(distance, 2 * (ids[:, None] != ids).sum(-1), atol=1e-4)


def test_principal_components_of_large_data_take_little_time_and_memory():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30_000, (300, 64), generator=g)  # as one-hot vectors in double precision: 4.6 GB
    ids[:150, 0] = 7
    before = torch.get_rng_state()
    tokens = pca_features(Text(30_000, 64), ids, components=3)
    assert torch.equal(before, torch.get_rng_state())
    found = tokens(ids)
    assert found.shape == (300, 3)
    assert abs(np.corrcoef(found[:, 0], (ids[:, 0] == 7).double())[0, 1]) > 0.9
    np.testing.assert_allclose(pca_features(Text(30_000, 64), ids, components=3)(ids), found, atol=1e-5)
    x = torch.randn(5000, 300, generator=g)
    x[:, 0] *= 20
    features = pca_features(Vector(300), x, components=2)
    np.testing.assert_array_equal(pca_features(Vector(300), x, components=2)(x[:9]), features(x[:9]))
    assert abs(np.corrcoef(features(x)[:, 0], x[:, 0])[0, 1]) > 0.99
    assert not np.array_equal(pca_features(Vector(300), x, components=2, seed=1)(x[:9]), features(x[:9]))


def test_precision_and_recall_of_identical_disjoint_and_partial_sets():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 2))
    assert precision_recall(real, real.copy()) == (1.0, 1.0, 3)
    assert precision_recall(real, real + 100) == (0.0, 0.0, 3)
    right = real[real[:, 0] > 0]
    precision, recall, _ = precision_recall(real, np.repeat(right, 2, 0)[: len(real)], k=5)
    assert precision == 1.0 and 0.35 < recall < 0.75
    mixed = np.concatenate([real[:100], real[:100] + 50])
    assert precision_recall(real, mixed).precision == 0.5


def test_precision_by_hand():
    real, made = np.array([[0.0], [1.0], [3.0]]), np.array([[-0.9], [-1.1], [4.9], [5.1]])
    assert precision_recall(real, made, k=1).precision == 0.5  # radii 1, 1, 2
    assert precision_recall(real, made, k=1).recall == 0.0  # radii 0.2: -1.1 to -0.7 and 4.7 to 5.3


def test_classifier_score():
    confident = np.eye(4)[np.arange(40) % 4]
    assert classifier_score(confident, splits=1) == (pytest.approx(4.0), 0.0)
    assert classifier_score(np.eye(4)[np.zeros(40, int)]).score == pytest.approx(1.0)
    assert classifier_score(np.full((40, 4), 0.25)).score == pytest.approx(1.0)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    m = p.mean(0)
    assert classifier_score(p, splits=1).score == pytest.approx(math.exp((p * np.log(p / m)).sum() / 2))
    first, second = (classifier_score(half, splits=1).score for half in (confident[:20], np.full((20, 4), 0.25)))
    both = classifier_score(np.concatenate([confident[:20], np.full((20, 4), 0.25)]), splits=2)
    assert both.score == pytest.approx((first + second) / 2) and both.deviation == pytest.approx((first - second) / 2)


def test_bad_input(tmp_path):
    x = np.zeros((5, 2))
    for bad in (np.zeros(5), np.zeros((1, 2)), np.zeros((5, 3)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="frechet_distance: got shapes"):
            frechet_distance(x, bad)
    with pytest.raises(ValueError, match="more than k = 5"):
        precision_recall(x, x, k=5)
    with pytest.raises(ValueError, match="k is 0"):
        precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="rows of which sum to 1"):
        classifier_score(x)
    with pytest.raises(ValueError, match=r"features 'flat': gave shape \[3\]"):
        Features("flat", lambda x: np.zeros(3))(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="features 'nan': gave NaN"):
        Features("nan", lambda x: np.full((3, 1), np.nan))(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="module is a function"):
        module_features(lambda x: x)
    with pytest.raises(ValueError, match="size is 100"):
        inception_features(tmp_path / "w.pth", size=100)
    with pytest.raises(FileNotFoundError, match="w.pth is no file"):
        inception_features(tmp_path / "w.pth")


class Scripted(nn.Module):
    """Means of each channel of uint8 pictures; like StyleGAN's file, logits unless it is asked for the features."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = x.float().mean(dim=(2, 3))
        return means if return_features else means[:, :1]


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1)[:, :5]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inception_weights_as_torchscript(tmp_path):
    torch.jit.script(Scripted()).save(str(tmp_path / "inception.pt"))
    features = inception_features(tmp_path / "inception.pt", batch_size=3)
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert features.name == "inception.pt"
    np.testing.assert_allclose(features(x), (x * 255).round().mean((2, 3)), rtol=1e-5)
    grey = features(x[:, :1] * 3 - 1)  # beyond black and white
    np.testing.assert_allclose(grey, np.repeat(grey[:, :1], 3, 1))
    assert grey.min() >= 0 and grey.max() <= 255
    assert frechet(x, x[:4] / 2, features).features == "inception.pt"
    torch.jit.script(Plain()).save(str(tmp_path / "plain.pt"))
    assert inception_features(str(tmp_path / "plain.pt"))(x).shape == (8, 5)
    with pytest.raises(ValueError, match=r"got shape \[8, 2, 4, 4\], expected \[B, 1 or 3, H, W\]"):
        features(x[:, :2])


def test_weights_that_are_none(tmp_path):
    import pickle

    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print, protocol=2))  # loading it must not run anything
    torch.save({"network": nn.Linear(1, 1)}, tmp_path / "module.pth")
    for name in ("text.pth", "code.pth", "module.pth"):
        with pytest.raises(ValueError, match=f"{name} is damaged or holds more than tensors"):
            inception_features(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth holds a list, expected tensors by name"):
        inception_features(tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises((ImportError, ValueError), match=r"needs torch-fidelity|is not of the Inception network"):
        inception_features(tmp_path / "other.pth")


def test_sets_of_samples_beside_a_real_half():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    real = 4 * torch.eye(3)[labels] + torch.randn(600, 3, generator=g)
    asked = torch.arange(3).repeat_interleave(100)  # sorted by class: the first of them are not drawn
    good = 4 * torch.eye(3)[asked] + torch.randn(300, 3, generator=g)
    one = 4 * torch.eye(3)[torch.zeros(250, dtype=torch.int64)] + torch.randn(250, 3, generator=g)
    features = Features("as they are", lambda x: x.numpy())
    found = sample_quality(
        real, {"good": good, "one class": one, "far": good + 50}, features,
        judge=lambda x: x.argmax(1).numpy(), labels=labels, intended={"good": asked}, seed=3,
    )  # fmt: skip
    assert list(found) == ["good", "one class", "far", "real half"]
    assert {row["rows"] for row in found.values()} == {250} and found["far"]["features"] == "as they are"
    assert found["good"]["distance"] < 0.6 and found["real half"]["distance"] < 0.6
    assert found["far"]["distance"] > 7000 and found["far"]["precision"] == 0
    assert found["one class"]["precision"] > 0.8 and found["one class"]["recall"] < 0.6 < found["good"]["recall"]
    assert found["good"]["intended"] > 0.95 and found["real half"]["intended"] > 0.95
    assert found["good"]["worst_class"] <= found["good"]["intended"] and "intended" not in found["one class"]
    unknown = sample_quality(real, {"good": good}, features, judge=lambda x: x.argmax(1).numpy(), labels=[-1] * 600)
    assert "intended" not in unknown["real half"]
    assert set(sample_quality(real, {}, features)) == {"real half"}


def test_all_samples_are_judged_and_the_space_knows_one_half_alone():
    """Nine of the 1000 samples made are compared with as many real ones, but the share of classes is of all."""
    real, made = torch.randn(19, 2), torch.zeros(1000, 2)
    told = torch.zeros(1000, dtype=torch.int64)
    told[::4] = 1  # what is asked for is class 0: one in four does not show it
    seen = []

    def space(half):
        seen.append(half)
        return Features("as they are", lambda x: x.numpy())

    found = sample_quality(
        real, {"made": made}, space, judge=lambda x: told[: len(x)].numpy(), labels=[-1] * 9 + [0] * 10,
        intended={"made": torch.zeros(1000)},
    )  # fmt: skip
    assert found["made"]["intended"] == 0.75 and found["made"]["judged"] == 1000 and found["made"]["rows"] == 9
    assert 0 < found["real half"]["judged"] <= 10
    (half,) = seen
    assert len(half) == 9 and {tuple(x) for x in half.tolist()} < {tuple(x) for x in real.tolist()}


def test_sets_that_cannot_be_compared():
    features = Features("as they are", lambda x: x.numpy())
    real, made = torch.randn(40, 2), torch.randn(20, 2)
    for bad, few in ((real[:15], made), (real, made[:7])):
        with pytest.raises(ValueError, match="expected 16 and 8 or more"):
            sample_quality(bad, {"made": few}, features)
    with pytest.raises(ValueError, match="judge is None"):
        sample_quality(real, {"made": made}, features, labels=[0] * 40)
    with pytest.raises(ValueError, match=r"labels has shape \[39\], expected \[40\]"):
        sample_quality(real, {"made": made}, features, judge=len, labels=[0] * 39)
    with pytest.raises(ValueError, match="intended: mode is no set of made samples"):
        sample_quality(real, {"made": made}, features, judge=len, intended={"mode": [0] * 20})
    with pytest.raises(ValueError, match="names a set 'real half'"):
        sample_quality(real, {"real half": made}, features)
