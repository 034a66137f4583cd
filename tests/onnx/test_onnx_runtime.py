"""The Runtime against torch, and everything a caller can get wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mmvae_fast.onnx import (
    BadDtype,
    BadShape,
    BadValue,
    InputError,
    MissingInput,
    NonFinite,
    Runtime,
    UnknownModality,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def tensors(inputs):
    return {k: torch.from_numpy(np.asarray(v)) for k, v in inputs.items()}


# --- the same as torch ------------------------------------------------------------------------------------------------


def test_seed_gives_the_latents_of_torch(mopoe, make_inputs):
    inputs = make_inputs()
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    with torch.no_grad():
        posterior = mopoe.model.encode(tensors(inputs), torch.from_numpy(mask))
        expected = posterior.sample(4, seed=2**63 + 5).numpy()
    z = mopoe.runtime.posterior_sample(inputs, 4, seed=2**63 + 5, mask=mask)
    assert z.shape == (4, 5, 6)
    np.testing.assert_allclose(z, expected, **CLOSE)
    np.testing.assert_allclose(mopoe.runtime.posterior_sample(inputs, 2, 2**63 + 5, mask), expected[:2], **CLOSE)
    again = mopoe.runtime.posterior_sample(inputs, 4, seed=2**63 + 5, mask=mask)
    np.testing.assert_array_equal(z, again)
    assert (mopoe.runtime.posterior_sample(inputs, 4, seed=6, mask=mask) != z).any()


def test_seed_gives_the_samples_of_torch(mopoe):
    expected = mopoe.model.sample(6, seed=3)
    actual = mopoe.runtime.sample(6, seed=3)
    assert list(actual) == list(expected)
    for name in expected:
        assert actual[name].dtype == expected[name].numpy().dtype
        np.testing.assert_allclose(actual[name], expected[name].numpy(), **CLOSE)
    assert list(mopoe.runtime.sample(2, to="audio")) == ["audio"]


def test_without_a_seed_every_call_differs(mopoe, make_inputs):
    a, b = (mopoe.runtime.sample(3, to=["image"])["image"] for _ in range(2))
    assert (a != b).any()
    a, b = (mopoe.runtime.posterior_sample(make_inputs(), 1) for _ in range(2))
    assert (a != b).any()


def test_custom_networks(mvae):
    rng = np.random.default_rng(0)
    inputs = {"photo": rng.random((4, 3, 8, 8), dtype=np.float32), "table-2": rng.random((4, 5), dtype=np.float32)}
    with torch.no_grad():
        expected = mvae.model.encode(tensors(inputs))
    actual = mvae.runtime.encode(inputs)
    np.testing.assert_allclose(actual.mu, expected.mu, **CLOSE)
    np.testing.assert_allclose(actual.logvar, expected.logvar, **CLOSE)
    np.testing.assert_allclose(
        mvae.runtime.cross_generate({"photo": inputs["photo"]}, "table-2"),
        mvae.model.translate(tensors({"photo": inputs["photo"]}), "table-2"),
        **CLOSE,
    )


def test_decode_takes_any_leading_dimensions(mopoe):
    z = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    for shape in ((2, 3, 4, 6), (24, 6), (6,), (0, 6), (3, 0, 6)):
        part = z.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        for params in (False, True):
            with torch.no_grad():
                expected = mopoe.model.decode(torch.from_numpy(part), params=params)
            actual = mopoe.runtime.decode(part, params=params)
            for name in expected:
                assert actual[name].dtype == expected[name].numpy().dtype
                np.testing.assert_allclose(actual[name], expected[name].numpy(), **CLOSE)
    assert list(mopoe.runtime.decode(z, to=["audio", "image"])) == ["audio", "image"]


# --- missing modalities -----------------------------------------------------------------------------------------------


def test_absent_encoders_are_never_loaded(runtime, make_inputs):
    inputs = make_inputs()
    assert runtime.info["loaded_parts"] == []
    runtime.encode({"text": inputs["text"]})
    assert runtime.info["loaded_parts"] == ["encoder_text", "fusion"]
    runtime.encode(inputs, mask={"image": np.zeros(5, bool), "audio": np.zeros(5, bool)})
    assert runtime.info["loaded_parts"] == ["encoder_text", "fusion"]
    runtime.cross_generate({"text": inputs["text"]}, "image")
    assert runtime.info["loaded_parts"] == ["decoder_image", "encoder_text", "fusion"]


def test_encoders_see_observed_rows_only(runtime, make_inputs, monkeypatch):
    seen = {}
    run = Runtime._run

    def spy(self, part, *values, **options):
        seen[part] = len(values[0])
        return run(self, part, *values, **options)

    monkeypatch.setattr(Runtime, "_run", spy)
    mask = {"image": np.array([1, 0, 0, 1, 0], bool), "text": np.zeros(5, bool)}
    runtime.encode(make_inputs(), mask)
    assert seen == {"encoder_image": 2, "encoder_audio": 5, "fusion": 5}


def test_whatever_is_stored_in_missing_rows_is_not_read(mopoe, make_inputs):
    clean, dirty = make_inputs(), make_inputs()
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    dirty["image"][~mask[:, 0]] = np.nan
    dirty["text"][~mask[:, 1]] = 10**9
    dirty["audio"][~mask[:, 2]] = np.inf
    for a, b in zip(mopoe.runtime.encode(clean, mask), mopoe.runtime.encode(dirty, mask), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_does_not_depend_on_the_others(mopoe, make_inputs):
    inputs = make_inputs(7)
    whole = mopoe.runtime.posterior_sample(inputs, 2, seed=1)
    part = mopoe.runtime.posterior_sample({k: v[:3] for k, v in inputs.items()}, 2, seed=1)
    np.testing.assert_allclose(whole[:, :3], part, rtol=1e-5, atol=1e-6)


def test_nothing_observed_gives_the_prior(mopoe, make_inputs):
    for mask in (np.zeros((4, 3), bool), {n: np.zeros(4, bool) for n in ("image", "text", "audio")}):
        posterior = mopoe.runtime.encode(make_inputs(4), mask)
        for value in posterior:
            np.testing.assert_array_equal(value, np.zeros_like(value))
        assert posterior.mu.shape == (4, 6)
        assert posterior.kl.shape == (4,)
    assert mopoe.runtime.info["latent_dim"] == 6


def test_what_is_not_given_is_missing_whatever_the_mask_says(mopoe, make_inputs):
    """As in the model."""
    text = {"text": make_inputs()["text"]}
    expected = mopoe.runtime.encode(text)
    for mask in (np.ones((5, 3), bool), {"image": np.ones(5, bool)}):
        with torch.no_grad():
            theirs = {n: torch.from_numpy(m) for n, m in mask.items()} if isinstance(mask, dict) else torch.tensor(mask)
            np.testing.assert_allclose(expected.mu, mopoe.model.encode(tensors(text), theirs).mu, **CLOSE)
        np.testing.assert_array_equal(mopoe.runtime.encode(text, mask).mu, expected.mu)


def test_no_inputs_are_an_error_whatever_the_mask_says(mopoe):
    """As in the model."""
    mask = np.zeros((4, 3), bool)
    with pytest.raises(ValueError, match="batch is empty"):
        mopoe.model.encode({}, torch.from_numpy(mask))
    with pytest.raises(MissingInput, match="inputs is empty"):
        mopoe.runtime.encode({}, mask)


def test_empty_batch(mopoe, make_inputs):
    inputs = make_inputs(0)
    posterior = mopoe.runtime.encode(inputs)
    assert [v.shape for v in posterior] == [(0, 6), (0, 6), (0,), (0, 6)]
    assert mopoe.runtime.posterior_sample(inputs, 3, seed=0).shape == (3, 0, 6)
    shapes = {k: (v.shape, v.dtype) for k, v in mopoe.runtime.reconstruct(inputs).items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in inputs.items()}
    assert mopoe.runtime.sample(0)["text"].shape == (0, 3)
    assert mopoe.runtime.posterior_sample(make_inputs(2), 0).shape == (0, 2, 6)


# --- what ONNX Runtime would get wrong --------------------------------------------------------------------------------


def test_layouts_and_types_that_mean_the_same(mopoe, make_inputs):
    inputs = make_inputs()
    expected = mopoe.runtime.encode(inputs)
    same = [
        {k: np.asfortranarray(v) for k, v in inputs.items()},
        {k: v.astype(v.dtype.newbyteorder(">")) for k, v in inputs.items()},
        {k: np.repeat(v, 2, axis=0)[::2] for k, v in inputs.items()},
        {**inputs, "image": inputs["image"].astype(np.float64), "text": inputs["text"].astype(np.uint8)},
        {k: v.tolist() for k, v in inputs.items()},
        tensors(inputs),
    ]
    for other in same:
        for a, b in zip(mopoe.runtime.encode(other), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    before = make_inputs()
    for k, v in inputs.items():
        np.testing.assert_array_equal(v, before[k])  # nobody wrote to the caller's arrays


def test_mask_of_zeros_and_ones(mopoe, make_inputs):
    mask = np.array([[1, 0, 1]] * 5)
    a, b = mopoe.runtime.encode(make_inputs(), mask), mopoe.runtime.encode(make_inputs(), mask.astype(bool))
    np.testing.assert_array_equal(a.mu, b.mu)


def bad(**changes):
    return lambda inputs: {**inputs, **{k: f(inputs[k]) for k, f in changes.items()}}


def poke(value):
    def change(x):
        x = x.copy()
        x[(2, *[0] * (x.ndim - 1))] = value
        return x

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i: {}, MissingInput, "inputs is empty, expected at least one of 'image', 'text', 'audio'"),
        (lambda i: None, MissingInput, "inputs is a NoneType, expected a dict"),
        (lambda i: i["image"], MissingInput, "inputs is a ndarray, expected a dict"),
        (lambda i: {"imgae": i["image"]}, UnknownModality, r"unknown modality 'imgae' \(did you mean 'image'\?\)"),
        (lambda i: {"Text": i["text"]}, UnknownModality, r"did you mean 'text'\?"),
        (lambda i: {"video": i["image"]}, UnknownModality, "'video', expected one of 'image', 'text', 'audio'"),
        (bad(image=lambda x: None), MissingInput, "modality 'image' is None"),
        (bad(image=lambda x: x[0]), BadShape, r"'image' has shape \[1, 5, 4\], expected \[B, 1, 5, 4\]; add the batch"),
        (bad(image=lambda x: x[..., :3]), BadShape, r"'image' has shape \[5, 1, 5, 3\], expected \[B, 1, 5, 4\]"),
        (bad(audio=lambda x: x[:2]), BadShape, "batch sizes differ.*'image': 5.*'audio': 2"),
        (bad(audio=lambda x: x[:1]), BadShape, "batch sizes differ"),
        (bad(image=lambda x: (x * 255).astype(np.uint8)), BadDtype, r"'image' has dtype uint8.*x / 255"),
        (bad(image=lambda x: x > 0.5), BadDtype, "'image' has dtype bool, expected float32"),
        (bad(image=lambda x: x.astype(complex)), BadDtype, "'image' has dtype complex128"),
        (bad(image=lambda x: x.astype(object)), BadDtype, "'image' has dtype object"),
        (bad(image=np.ma.masked_array), BadDtype, "'image' is a masked array, expected a plain one; .* mask"),
        (bad(audio=lambda x: np.ma.masked_less(x, 0)), BadDtype, "'audio' is a masked array"),
        (bad(image=lambda x: "cat.png"), BadValue, r"'image', row 0: cat\.png: no such file"),
        (
            bad(audio=lambda x: "cat.wav"),
            BadDtype,
            "'audio' is str, expected an array of numbers.*how this audio was read",
        ),
        (bad(text=lambda x: ["one"] * 4 + [3]), BadDtype, "'text': got a list of other things"),
        (bad(image=lambda x: [[1.0], [1.0, 2.0]]), BadDtype, "'image' is a list that NumPy cannot read"),
        (bad(image=lambda x: torch.zeros(5, 1, 5, 4, requires_grad=True)), BadDtype, "'image' is a Tensor that NumPy"),
        (bad(text=lambda x: x.astype(np.float32)), BadDtype, "'text' has dtype float32, expected int64 token ids"),
        (bad(text=poke(8)), BadValue, r"'text' holds token 8 at \[2, 0\], expected 0 to 7"),
        (bad(text=poke(-1)), BadValue, r"'text' holds token -1 at \[2, 0\]"),
        (bad(text=lambda x: x.astype(np.uint64) + np.uint64(2**63)), BadValue, "'text' holds 922"),
        (bad(image=poke(np.nan)), NonFinite, r"'image' holds nan at \[2, 0, 0, 0\]"),
        (bad(audio=poke(-np.inf)), NonFinite, r"'audio' holds -inf at \[2, 0, 0\]"),
        (bad(audio=lambda x: x.astype(np.float64) * 1e300), NonFinite, "'audio' holds -?inf"),
    ],
)
def test_bad_inputs(mopoe, make_inputs, change, error, message):
    with pytest.raises(error, match=message) as caught:
        mopoe.runtime.encode(change(make_inputs()))
    assert isinstance(caught.value, (InputError, ValueError))


def test_position_of_bad_value_is_that_of_the_batch(mopoe, make_inputs):
    """Not of the gathered rows."""
    inputs = bad(image=poke(np.nan))(make_inputs())
    with pytest.raises(NonFinite, match=r"at \[2, 0, 0, 0\]"):
        mopoe.runtime.encode(inputs, {"image": np.array([0, 0, 1, 1, 1], bool)})


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((1, 3), bool), BadShape, "batch sizes differ.*mask: 1"),
        (np.ones((5, 2), bool), BadShape, r"mask has shape \[5, 2\], expected \[B, M\] = \[B, 3\].*image, text, audio"),
        (np.ones(5, bool), BadShape, r"mask has shape \[5\]"),
        (np.ones((5, 3), np.float32), BadDtype, "mask has dtype float32, expected bool"),
        (np.full((5, 3), 2), BadDtype, "mask has dtype int64, expected bool"),
        ({"audio": np.ones(1, bool)}, BadShape, "batch sizes differ.*mask of 'audio': 1"),
        ({"audio": np.ones((5, 1), bool)}, BadShape, r"mask of 'audio' has shape \[5, 1\], expected \[B\]"),
        ({"audoi": np.ones(5, bool)}, UnknownModality, "mask: unknown modality 'audoi'.*'audio'"),
        ({"audio": None}, MissingInput, "mask of 'audio' is None"),
    ],
)
def test_bad_mask(mopoe, make_inputs, mask, error, message):
    with pytest.raises(error, match=message):
        mopoe.runtime.encode(make_inputs(), mask)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, i: r.decode(np.zeros((2, 5), np.float32)), BadShape, r"z has shape \[2, 5\], expected \[..., 6\]"),
        (lambda r, i: r.decode(np.float32(1)), BadShape, r"z has shape \[\]"),
        (lambda r, i: r.decode(np.full((2, 6), np.nan)), NonFinite, "z holds NaN"),
        (lambda r, i: r.decode(np.zeros((2, 6), int)), BadDtype, "z has dtype int64"),
        (lambda r, i: r.decode(np.zeros((2, 6)), to="imag"), UnknownModality, "to: unknown modality 'imag'.*'image'"),
        (lambda r, i: r.decode(np.zeros((2, 6)), to=3), BadDtype, "to is a int, expected names"),
        (lambda r, i: r.reconstruct(i, to=["image", "x"]), UnknownModality, "to: unknown modality 'x'"),
        (lambda r, i: r.cross_generate(i, "x"), UnknownModality, "to: unknown modality 'x'"),
        (lambda r, i: r.cross_generate(i, ["image"]), BadDtype, "to is a list, expected one modality"),
        (lambda r, i: r.sample(-1), BadValue, "n is -1, expected 0 or more"),
        (lambda r, i: r.sample(2.5), BadDtype, "n is a float, expected an int"),
        (lambda r, i: r.sample(2, seed=0.5), BadDtype, "seed is a float, expected an int"),
        (lambda r, i: r.sample(2, seed=2**64), BadValue, "seed is 18446744073709551616, expected 64 bits"),
        (lambda r, i: r.posterior_sample(i, -3), BadValue, "n_samples is -3"),
        (lambda r, i: r.posterior_sample(i, True), BadDtype, "n_samples is a bool"),
        (lambda r, i: Runtime.load(r.folder, threads=-1), BadValue, "threads is -1"),
    ],
)
def test_bad_calls(mopoe, make_inputs, call, error, message):
    with pytest.raises(error, match=message):
        call(mopoe.runtime, make_inputs())


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_as_the_modality_does_it(mopoe):
    sentences = ["a drawing of", "größe", "", "  one   thing "]
    text = mopoe.model.modalities["text"]
    ids = mopoe.runtime.tokenize(sentences)
    np.testing.assert_array_equal(ids, text.tokenize(sentences).numpy())
    assert ids.dtype == np.int64
    assert mopoe.runtime.detokenize(ids) == text.detokenize(torch.from_numpy(ids))
    long = ["a drawing of zero"]
    np.testing.assert_array_equal(mopoe.runtime.tokenize(long, truncate=True), text.tokenize(long, truncate=True))
    assert mopoe.runtime.tokenize([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda r: r.tokenize(["a drawing of zero"]),
            BadShape,
            "modality 'text': sentence 0 has 4 words, expected at most 3",
        ),
        (lambda r: r.tokenize("a drawing"), BadDtype, "modality 'text': got one string, expected a list of sentences"),
        (lambda r: r.tokenize(["a"], "image"), UnknownModality, "unknown modality with a vocabulary 'image'"),
        (lambda r: r.detokenize([[0, 1, 99]]), BadValue, "'text' holds token 99"),
    ],
)
def test_bad_text(mopoe, call, error, message):
    with pytest.raises(error, match=message):
        call(mopoe.runtime)


def test_no_vocabulary(mvae):
    with pytest.raises(BadValue, match="0 modalities have a vocabulary"):
        mvae.runtime.tokenize(["a"])


# --- serving ----------------------------------------------------------------------------------------------------------


def test_threads_may_share_one_runtime(mopoe, make_inputs):
    fresh = Runtime.load(mopoe.folder, threads=2)

    def serve(runtime, seed):
        inputs = make_inputs(3, seed=seed)
        return runtime.posterior_sample(inputs, 2, seed=seed), runtime.reconstruct(inputs)

    expected = [serve(mopoe.runtime, seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda seed: serve(fresh, seed), range(24)))
    for (z, images), (z2, images2) in zip(expected, actual, strict=True):
        np.testing.assert_allclose(z, z2, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(images["image"], images2["image"], rtol=1e-5, atol=1e-6)
    assert len(fresh.info["loaded_parts"]) == 7


def test_describes_itself(mopoe):
    assert "MoPoE" in repr(mopoe.runtime)
    assert "image: image [1, 5, 4]" in repr(mopoe.runtime)
    info = mopoe.runtime.info
    assert info["model"] == "MoPoE"
    assert [m["name"] for m in info["modalities"]] == ["image", "text", "audio"]
    assert info["folder"] == str(mopoe.folder)


def test_answers_that_are_no_numbers(runtime, make_inputs):
    """Finite inputs, of which float32 makes infinity."""
    x = {"audio": np.full((2, 4, 3), 3e38, np.float32)}
    for verb in (runtime.encode, runtime.reconstruct, lambda x: runtime.posterior_sample(x, 2, seed=0)):
        with pytest.raises(NonFinite, match="posterior: the answer holds NaN or infinity"):
            verb(x)
    with pytest.raises(NonFinite, match="modality 'image': the answer holds NaN or infinity"):
        runtime.decode(np.full((1, 6), 3e38, np.float32), "image", params=True)
