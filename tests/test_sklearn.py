"""The transformer: scikit-learn's own checks, pipelines, and every form that data of several modalities comes in."""

from unittest import SkipTest

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("lightning")

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from mmvae_fast.modalities import Image, Vector
from mmvae_fast.sklearn import MultimodalVAETransformer

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ROWS = 120


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels[:ROWS] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    captions = [f"digit {WORDS[label]}" if row % 4 else None for row, label in enumerate(labels[:ROWS])]
    images[::5] = np.nan
    return {"image": images, "text": captions}, labels[:ROWS]


def transformer(**options):
    modalities = {"image": Image((1, 8, 8), hidden=(32,)), "text": {"kind": "text", "hidden": [16]}}
    return MultimodalVAETransformer(modalities, **{"latent_dim": 4, "epochs": 3, "accelerator": "cpu", **options})


# the check fits a dozen of scikit-learn's own meta-estimators, none of ours
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks():
    failed, done = {}, 0
    checked = MultimodalVAETransformer(epochs=1, latent_dim=2, accelerator="cpu")
    for estimator, check in estimator_checks_generator(checked):
        name = getattr(check, "func", check).__name__
        try:
            check(estimator)
            done += 1
        except SkipTest:
            continue
        except Exception as error:
            failed[name] = error
    assert failed == {}
    assert done > 30


def test_a_pipeline_over_images_and_captions(digits):
    X, y = digits
    pipeline = make_pipeline(transformer(epochs=100, lr=5e-3, batch_size=30), LogisticRegression(max_iter=500)).fit(
        X, y
    )
    assert pipeline.score(X, y) > 0.4  # one in ten by chance
    vae = pipeline[0]
    z = vae.transform({"text": X["text"]})  # images missing in all rows
    assert z.shape == (ROWS, 4)
    assert z.dtype == np.float32
    assert (z[::4] == 0).all()  # no caption there either
    decoded = vae.inverse_transform(z[:3])
    assert decoded["image"].shape == (3, 1, 8, 8)
    assert all(text.startswith("digit ") for text in decoded["text"])
    assert vae.score(X) > vae.set_params(epochs=1).fit(X).score(X)
    assert list(vae.get_feature_names_out()) == [f"multimodalvaetransformer{d}" for d in range(4)]


def test_all_forms_of_the_same_data_are_the_same(digits):
    X, y = digits
    X = {name: column[:40] for name, column in X.items()}
    expected = transformer().fit(X).transform(X)
    rows = [dict(zip(X, row, strict=True)) for row in zip(*X.values(), strict=True)]
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    np.testing.assert_array_equal(transformer().fit(rows).transform(rows), expected)
    frame = pytest.importorskip("pandas").DataFrame({"image": list(X["image"]), "text": X["text"], "digit": y[:40]})
    np.testing.assert_array_equal(transformer().fit(frame).transform(frame), expected)
    assert cross_val_score(make_pipeline(transformer(epochs=1), LogisticRegression()), frame, y[:40] > 4, cv=2).shape


def test_clone_and_parameters(digits):
    original = transformer(random_state=3)
    copy = clone(original)
    assert copy.get_params()["random_state"] == 3
    assert copy.get_params()["modalities"]["text"] == {"kind": "text", "hidden": [16]}
    copy.set_params(latent_dim=2, epochs=1).fit({name: column[:20] for name, column in digits[0].items()})
    assert copy.model_.latent_dim == 2
    assert original.latent_dim == 4
    assert not hasattr(original, "model_")


def test_random_state_decides():
    X = np.random.default_rng(0).normal(size=(30, 3))

    def z(state):
        options = {"epochs": 1, "latent_dim": 2, "accelerator": "cpu", "random_state": state}
        return MultimodalVAETransformer(**options).fit_transform(X)

    assert (z(0) == z(0)).all()
    assert (z(0) != z(1)).any()


def test_arrays_by_name_are_vectors():
    rng = np.random.default_rng(0)
    X = {"a": rng.normal(size=(20, 3)), "b": rng.normal(size=(20, 2))}
    vae = MultimodalVAETransformer(epochs=1, latent_dim=2, accelerator="cpu").fit(X)
    assert all(type(modality) is Vector for modality in vae.model_.modalities.values())
    assert vae.transform({"b": X["b"]}).shape == (20, 2)


@pytest.mark.parametrize(
    ("options", "X", "said"),
    [
        ({}, {"image": np.zeros((3, 1, 8, 8)), "text": ["a", "b"]}, "rows {'image': 3, 'text': 2}"),
        ({}, {"image": np.zeros((3, 8, 8)), "text": ["a", "b", "c"]}, r"modality 'image', row 0: has shape \[8, 8\]"),
        ({}, {"image": np.full((2, 1, 8, 8), 7.0), "text": ["a", "b"]}, "modality 'image': values from 7 to 7"),
        ({}, {"image": np.zeros((2, 1, 8, 8)), "text": ["a", 3]}, "expected text"),
        ({}, {"imag": np.zeros((2, 1, 8, 8))}, r"X has \['imag'\], expected some of \['image', 'text'\]"),
        ({}, np.zeros((2, 3)), "X is a ndarray, expected a dict"),
        ({"model": "MoPo"}, {"text": ["a"]}, "model is 'MoPo'"),
        ({"modalities": None}, {"text": ["a", "b"]}, "modality 'text': not an array of numbers"),
    ],
)
def test_wrong_data(options, X, said):
    with pytest.raises(ValueError, match=said):
        transformer().set_params(**options).fit(X)


def test_networks_of_the_caller_are_not_trained():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3, 4)

        def forward(self, x):
            return tuple(self.net(x).chunk(2, -1))

    encoder = Encoder()
    before = encoder.net.weight.clone()
    transformer = MultimodalVAETransformer({"v": Vector(3, encoder=encoder)}, latent_dim=2, epochs=1, lr=0.1)
    X = {"v": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)}
    first = transformer.fit(X).transform(X)
    assert torch.equal(encoder.net.weight, before)
    np.testing.assert_array_equal(transformer.fit(X).transform(X), first)


@pytest.mark.parametrize("options", [{"lenght": 8}, {"length": 0}])
def test_an_option_that_a_reader_does_not_take_names_the_modality(digits, options):
    wrong = MultimodalVAETransformer({"text": {"kind": "text", **options}}, epochs=1)
    with pytest.raises(ValueError, match=rf"modality 'text': .*{next(iter(options))}"):
        wrong.fit({"text": digits[0]["text"]})
