"""Patches of images read from files, and the dictionary of visual words they make."""

import io
import json

import numpy as np
import pytest

from mmvae_fast.features import PatchDictionary, extract_patches, normalise, patch_grid, read_image
from mmvae_fast.features import patches as module

pillow = pytest.importorskip("PIL.Image", reason="needs the 'image' extra")
datasets = pytest.importorskip("sklearn.datasets", reason="needs the 'image' extra")

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)


def png(pixels, mode=None):
    file = io.BytesIO()
    image = pillow.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(params=["opencv", "pillow"])
def backend(request, monkeypatch):
    if request.param == "opencv":
        pytest.importorskip("cv2", reason="needs the 'image' extra")
    else:
        monkeypatch.setitem(__import__("sys").modules, "cv2", None)  # import cv2 raises ImportError
    return request.param


def test_images_of_any_mode_are_read(backend, tmp_path):
    np.testing.assert_array_equal(read_image(png(COLOR), 3), COLOR)
    path = tmp_path / "größe.png"
    path.write_bytes(png(COLOR))
    gray = read_image(path)
    assert gray.shape == (12, 9, 1)
    luma = COLOR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(read_image(png(COLOR[..., 0]), 3), np.repeat(COLOR[..., :1], 3, 2))
    for mode in ("P", "RGBA", "1"):
        assert read_image(png(COLOR, mode), 3).shape == (12, 9, 3)


def test_what_is_no_image_is_refused(backend, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "empty.png"):
        with pytest.raises(ValueError, match=f"{name}: not an image that"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="the image: not an image that"):
        read_image(png(COLOR)[:20])
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="channels is 2, expected 1 or 3"):
        read_image(b"", 2)


def test_patches_are_pieces_of_the_image():
    grid = patch_grid(COLOR, 4, 2)
    assert grid.shape == (5, 3, 48)
    assert grid.dtype == np.float32
    np.testing.assert_allclose(grid[2, 1].reshape(4, 4, 3), COLOR[4:8, 2:6] / 255, rtol=1e-6)
    drawn = extract_patches(COLOR, 4, 10, seed=3)
    every = patch_grid(COLOR, 4).reshape(-1, 48)
    assert drawn.shape == (10, 48)
    assert all((every == patch).all(1).any() for patch in drawn)
    np.testing.assert_array_equal(drawn, extract_patches(COLOR, 4, 10, seed=3))
    assert (drawn != extract_patches(COLOR, 4, 10, seed=4)).any()
    assert extract_patches(COLOR[..., 0], 9, 1000).shape == (4, 81)
    np.testing.assert_array_equal(patch_grid(COLOR / 255.0, 4), patch_grid(COLOR, 4))


def test_normalised_patches_have_lost_light_and_contrast():
    patches = RNG.random((5, 36))
    once = normalise(patches)
    np.testing.assert_allclose(once.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(once.std(-1), 1, atol=1e-2)
    np.testing.assert_allclose(normalise(0.5 * patches + 0.3), once, atol=1e-2)
    assert np.abs(normalise(np.full((1, 36), 0.4))).max() < 1e-12


@pytest.fixture(scope="module")
def digits():
    pixels, labels = datasets.load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32).reshape(-1, 8, 8), labels


@pytest.mark.parametrize("variance", [0.99, None])
def test_words_and_pooled_tell_digits_apart(digits, variance):
    """A linear classifier on 12 words' worth of patches against one on as many principal components of the pixels."""
    from sklearn.linear_model import LogisticRegression

    images, labels = digits[0][:900], digits[1][:900]
    dictionary = PatchDictionary(size=4, n_words=12, n_patches=10, variance=variance).fit(images[:600])
    words = np.stack([dictionary.words(image) for image in images])
    assert words.dtype == np.int64
    assert (words.sum(1) == 25).all()
    assert (words.sum(0) > 0).all()
    pooled = np.stack([dictionary.pooled(image) for image in images])
    assert pooled.shape == (900, 48)
    for described, least in ((words, 0.6), (pooled, 0.85)):
        scaled = (described - described[:600].mean(0)) / described[:600].std(0)
        classifier = LogisticRegression(max_iter=300).fit(scaled[:600], labels[:600])
        assert classifier.score(scaled[600:], labels[600:]) > least


def test_a_dictionary_is_seeded_and_comes_back_from_json(digits):
    images = digits[0][:100]
    options = {"size": 3, "n_words": 8, "n_patches": 9, "stride": 2, "seed": 5}
    dictionary = PatchDictionary(**options).fit(iter(images))
    again = PatchDictionary.from_config(json.loads(json.dumps(dictionary.config())))
    same = PatchDictionary(**options).fit(images)
    for image in images[:20]:
        for other in (again, same):
            np.testing.assert_array_equal(other.words(image), dictionary.words(image))
            np.testing.assert_array_equal(other.pooled(image), dictionary.pooled(image))
    assert dictionary.words(RNG.random((20, 31)).astype(np.float32)).sum() == 9 * 15  # of any size
    assert np.isfinite(dictionary.pooled(images[0][:3, :3])).all()  # a single patch is in every quarter
    empty = PatchDictionary.from_config(PatchDictionary().config())
    with pytest.raises(ValueError, match="fit comes first"):
        empty.words(images[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchDictionary(size=1), "size is 1, expected 2 or more"),
        (lambda: PatchDictionary(n_words=0), "n_words is 0, expected a positive integer"),
        (lambda: PatchDictionary(variance=2.0), "variance is 2.0"),
        (lambda: PatchDictionary().fit([]), "0 different patches, expected at least n_words, 64"),
        (lambda: PatchDictionary().fit([np.zeros((20, 20))]), "1 different patches"),
        (lambda: PatchDictionary(size=3).fit([COLOR, COLOR[..., 0]]), "different numbers of channels"),
        (lambda: PatchDictionary(n_words=9).fit([COLOR]).words(COLOR[..., 0]), "another number of channels"),
        (lambda: extract_patches(COLOR, 10, 3), "12 x 9 pixels, a patch 10 x 10"),
        (lambda: patch_grid(np.full((9, 9), np.nan), 3), "NaN or infinite"),
        (lambda: patch_grid(np.zeros(9), 3), r"of shape \[9\]"),
        (lambda: PatchDictionary.from_config(_broken()), "do not fit together"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _broken():
    config = PatchDictionary(size=3, n_words=4).fit([COLOR]).config()
    return {**config, "mean": config["mean"][:-1]}


def test_a_missing_library_names_the_extra(monkeypatch):
    def missing(name, *, extra):
        raise ImportError(f"{name} comes with the '{extra}' extra")

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(ImportError, match="'image' extra"):
        extract_patches(COLOR, 3, 5)
