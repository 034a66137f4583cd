import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the 'demo' extra")
pytest.importorskip("librosa", reason="needs the 'audio' extra")

from mmvae_fast.demo import data

DRAWS = 300


@pytest.fixture(scope="module")
def demo_set():
    return data.build(seed=3, draws=DRAWS)


def same(a: data.Split, b: data.Split) -> bool:
    return a.captions == b.captions and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("images", "tones", "labels", "source")
    )


def test_same_seed_gives_the_same_rows_and_another_seed_does_not(demo_set):
    again, other = data.build(seed=3, draws=DRAWS), data.build(seed=4, draws=DRAWS)
    for part, repeated, different in zip(demo_set, again, other, strict=True):
        assert same(part, repeated)
        assert not np.array_equal(part.tones, different.tones)
    assert not np.array_equal(demo_set.train.source, other.train.source)


def test_splits_never_mix_and_do_not_depend_on_the_seed(demo_set):
    train, validation, test = (set(part.source.tolist()) for part in demo_set)
    assert train.isdisjoint(validation | test)
    assert validation.isdisjoint(test)
    assert (len(validation), len(test)) == (data.N_VALIDATION, data.N_TEST)
    other = data.build(seed=4, draws=DRAWS)
    assert set(other.test.source.tolist()) == test
    assert not set(other.train.source.tolist()) & test


def test_the_test_split_holds_every_digit_about_equally(demo_set):
    counts = np.bincount(demo_set.test.labels, minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_rows_belong_together_and_have_the_types_models_take(demo_set):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for part in demo_set:
        assert part.images.shape == (len(part), 1, 8, 8)
        assert part.tones.shape == (len(part), data.N_MELS, data.N_FRAMES)
        assert part.images.dtype == part.tones.dtype == np.float32
        for x in (part.images, part.tones):
            assert x.min() >= 0
            assert x.max() <= 1
        assert np.array_equal(part.images.reshape(-1, 64) * 16, pixels[part.source])
        assert np.array_equal(part.labels, labels[part.source])
        assert [data.read_caption(c) for c in part.captions] == part.labels.tolist()


@pytest.mark.parametrize("digit", range(10))
def test_a_tone_has_its_two_frequencies(digit):
    wave = data.tone(digit, np.random.default_rng(digit))
    assert wave.shape == (data.TONE_SAMPLES,)
    assert np.abs(wave).max() <= 1
    power = np.abs(np.fft.rfft(wave)) ** 2
    frequencies = np.fft.rfftfreq(len(wave), 1 / data.SAMPLE_RATE)
    row, column = data.KEY_FREQUENCIES[digit]
    for expected, band in ((row, frequencies < 1050), (column, frequencies >= 1050)):
        peak = frequencies[band][np.argmax(power[band])]
        assert abs(peak - expected) <= 4  # a bin is 2 Hz wide
    near = (np.abs(frequencies - row) < 20) | (np.abs(frequencies - column) < 20)
    assert power[near].sum() > 0.9 * power.sum()


def test_tones_vary_in_start_length_and_loudness():
    rng = np.random.default_rng(0)
    pictures = data.log_mel(np.stack([data.tone(5, rng) for _ in range(50)]))
    loud = pictures.max(1) > 0.4  # [B, frames]
    assert len(set(loud.argmax(1).tolist())) >= 4
    assert len(set(loud.sum(1).tolist())) >= 4
    assert np.std(pictures.max((1, 2))) > 0.01


def test_the_log_mel_picture_shows_the_keys_in_order_of_frequency():
    rng = np.random.default_rng(0)
    low = [data.log_mel(data.tone(d, rng)[None])[0].max(1)[:9].argmax() for d in (1, 4, 7, 0)]  # 697 .. 941 Hz
    high = [9 + data.log_mel(data.tone(d, rng)[None])[0].max(1)[9:].argmax() for d in (1, 2, 3)]  # 1209 .. 1477 Hz
    assert low == sorted(set(low))
    assert high == sorted(set(high))


def test_captions_are_read_back_and_nothing_else_is():
    assert [data.read_caption(data.caption(d)) for d in range(10)] == list(range(10))
    broken = ("", "three", "a photo of the digit", "a photo of the digit <unk>", "a photo the of digit three")
    assert [data.read_caption(text) for text in broken] == [-1] * len(broken)
    assert data.read_caption("a photo of the digit three three") == -1


def test_modalities_take_a_batch(demo_set):
    modalities = data.modalities()
    batch = demo_set.test.batch(modalities)
    assert list(batch) == list(modalities)
    for name, modality in modalities.items():
        modality.check(name, batch[name])
        modality.check_values(name, batch[name])
    assert modalities["text"].detokenize(batch["text"]) == demo_set.test.captions
