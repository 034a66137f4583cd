"""The judges and the counting, on decoders that are known to be right, wrong or independent."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the 'demo' extra")
pytest.importorskip("librosa", reason="needs the 'audio' extra")
pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")

from mmvae_fast.demo import data, evaluate
from mmvae_fast.evaluate import agreement
from mmvae_fast.modalities import Vector
from mmvae_fast.models import MoPoE

LABELS = np.arange(1000) % 10
NAMES = ("image", "text", "audio")
READ = {
    name: lambda x: x.reshape(len(x)).double().round().numpy().astype(int) for name in NAMES
}  # a decoded row is its digit


def shuffled(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(LABELS))


def directions(decode):
    """Coherence of a model that decodes the digits it is shown into what ``decode`` makes of them."""
    model = MoPoE({name: Vector(1, hidden=(2,)) for name in NAMES}, 2)
    model.reconstruct = lambda batch, to: dict.fromkeys(to, decode(tuple(batch), next(iter(batch.values()))))
    digits = torch.from_numpy(LABELS).float()[:, None]
    return evaluate.coherence(model, dict.fromkeys(NAMES, digits), READ, LABELS)


def test_perfect_decoder_scores_one_in_all_nine_directions():
    found = directions(lambda sources, digits: digits)
    assert len(found) == 9
    assert {"image->text", "text->image", "image+audio->text", "text+audio->image"} <= set(found)
    assert set(found.values()) == {1.0}


def test_scrambled_decoder_scores_chance():
    generator = torch.Generator().manual_seed(0)
    found = directions(lambda sources, digits: digits[torch.randperm(len(digits), generator=generator)])
    assert all(0.06 < share < 0.14 for share in found.values())


def test_the_summary_averages_the_right_directions():
    def decode(sources, digits):
        return torch.where(digits < 5, digits, -1) if sources == ("image",) else digits

    assert evaluate.summarise(directions(decode)) == {
        "image_to_text": 0.5,
        "text_to_image": 1.0,
        "mean_from_one": pytest.approx(np.mean([0.5, 1.0, 1.0])),
        "mean_from_all_but_one": 1.0,
    }


def test_agreement_needs_all_modalities_and_a_readable_digit():
    right = torch.from_numpy(LABELS)
    assert agreement(dict.fromkeys(NAMES, right), READ) == 1.0
    one_wrong = {**dict.fromkeys(NAMES, right), "audio": shuffled(0)}
    assert agreement(one_wrong, READ) == pytest.approx(0.1, abs=0.04)
    assert agreement(dict.fromkeys(NAMES, torch.full((5,), -1)), READ) == 0.0


@pytest.fixture(scope="module")
def demo_set():
    return data.build(seed=0, draws=1000)


def test_judges_know_real_rows_and_broken_captions(demo_set):
    judges, test = evaluate.fit_judges(demo_set.train), demo_set.test
    batch = test.batch(data.modalities())
    shares = {name: np.mean(judge(batch[name]) == test.labels) for name, judge in judges.items()}
    assert shares["image"] > 0.96
    assert shares["text"] == 1.0
    assert shares["audio"] > 0.99
    broken = batch["text"].clone()
    broken[:, 0] = broken[:, 1]
    assert set(judges["text"](broken)) == {-1}
    assert agreement(batch, judges) > 0.96
    assert agreement({**batch, "audio": batch["audio"].flip(0)}, judges) < 0.2


def test_gmm_is_reproducible_and_finds_clusters():
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(10, 4))
    z = (centres[LABELS] + rng.normal(size=(1000, 4))).astype(np.float32)
    first, second = (evaluate.fit_gmm(z, seed=1).sample(200)[0] for _ in range(2))
    assert np.array_equal(first, second)
    distance = np.linalg.norm(first[:, None] - centres, axis=-1).min(1)
    assert distance.max() < 6  # four dimensions of standard deviation 1


class _Prototypes:
    """Decodes q(z | caption) into one image and one tone a digit, plus as much noise as told."""

    def __init__(self, test: data.Split, noise: float) -> None:
        self.labels, self.noise = test.labels, noise
        self.batch = test.batch(data.modalities())

    def encode(self, batch):
        return self

    def sample(self, seed):
        return torch.randn(len(self.labels), 1, generator=torch.Generator().manual_seed(seed))

    def decode(self, z, names):
        decoded = {}
        for name in names:
            means = torch.stack([self.batch[name][self.labels == d].mean(0) for d in range(10)])[self.labels]
            decoded[name] = means + self.noise * z.reshape(-1, *[1] * (means.dim() - 1))
        return decoded


def test_diversity_is_zero_for_prototypes_and_grows_with_noise(demo_set):
    batch = demo_set.test.batch(data.modalities())

    def found(noise: float) -> float:
        model = _Prototypes(demo_set.test, noise)
        return evaluate.diversity(model, batch, demo_set.test.labels, seed=0)["text_to_image"]

    assert found(0.0) == pytest.approx(0.0, abs=1e-5)
    assert found(0.2) == pytest.approx(2 * found(0.1), rel=1e-3)
