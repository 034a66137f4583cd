"""Texts from a latent space: generated, reconstructed, and on the way from one to another."""

import pytest
import torch

from mmvae_fast.modalities import Language, Vector
from mmvae_fast.models import CVAE, MVAE, VAE, MoPoE
from mmvae_fast.models.samplers import fit_sampler
from mmvae_fast.systems.text_generation import generate, interpolate, reconstruct

pytest.importorskip("tokenizers")

TEXTS = ["red ball", "blue cube", "a green ball", "two blue balls"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = Language.from_texts(TEXTS * 5, vocabulary_size=290, width=32, heads=2, layers=1, dropout=0.0)
    model = VAE({"text": text}, 2, beta=0.2)
    x = text.tokenize(TEXTS * 8)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for step in range(100):
        optimizer.zero_grad()
        model({"text": x}, seed=step).loss.backward()
        optimizer.step()
    return model.eval()


def test_it_has_learned_the_texts(model):
    assert reconstruct(model, TEXTS) == TEXTS
    made = generate(model, 40, seed=1)
    assert sum(text in TEXTS for text in made) >= 30
    assert len(set(made)) >= 3


def test_a_walk_ends_at_both_texts(model):
    way = interpolate(model, TEXTS[1], TEXTS[3], 9)
    assert len(way) == 9 and (way[0], way[-1]) == (TEXTS[1], TEXTS[3])
    assert interpolate(model, TEXTS[1], TEXTS[3], 9) == way
    assert interpolate(model, TEXTS[0], TEXTS[0], 3) == [TEXTS[0]] * 3


def test_options_of_sampling_and_the_seed(model):
    hot = {"temperature": 2.0}
    a = generate(model, 20, seed=1, **hot)
    assert generate(model, 20, seed=1, **hot) == a != generate(model, 20, seed=2, **hot)
    assert generate(model, 5, seed=1, **hot) == a[:5]
    assert generate(model, 20, seed=1, top_k=1, **hot) == generate(model, 20, seed=1)
    z = torch.zeros(30, 2)
    assert len(set(generate(model, z))) == 1 < len(set(generate(model, z, seed=3, **hot)))
    assert generate(model, 0) == []
    x = model.modalities["text"].tokenize(TEXTS * 10)
    sampler = fit_sampler(model.encode({"text": x}).sample(seed=0), "gmm", n_components=4)
    assert set(generate(model, 30, seed=1, prior=sampler)) <= set(TEXTS)


def test_of_several_modalities():
    text, other = (Language.from_texts(TEXTS, width=8, heads=2, layers=1) for _ in range(2))
    model = MoPoE({"text": text, "v": Vector(3)}, 2, private_dim={"text": 1, "v": 0}).eval()
    z = model.encode({"v": torch.randn(4, 3)}).mu
    assert generate(model, z) == text.detokenize(model.decode(z, "text")["text"])
    assert len(generate(model, 3, seed=0)) == len(reconstruct(model, TEXTS[:3])) == 3
    two = MVAE({"a": text, "b": other}, 2).eval()
    assert len(interpolate(two, TEXTS[0], TEXTS[1], 2, name="b")) == 2
    with pytest.raises(ValueError, match=r"name is None, expected one of the Language modalities \['a', 'b'\]"):
        generate(two, 1)
    with pytest.raises(ValueError, match=r"name is 'v', expected one of the Language modalities \['text'\]"):
        generate(model, 1, name="v")


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="interpolate: steps is 1, expected 2 or more"):
        interpolate(model, *TEXTS[:2], steps=1)
    for z in (-1, 2.0, True):
        with pytest.raises(ValueError, match=f"generate: z is {z}, expected latents"):
            generate(model, z)
    with pytest.raises(ValueError, match=r"z has shape \[2\], expected \[N, 2\]"):
        generate(model, torch.zeros(2))
    with pytest.raises(ValueError, match="z has shape"):
        generate(model, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="temperature is -1"):
        generate(model, 1, temperature=-1)
    text = model.modalities["text"]
    conditional = CVAE({"text": text, "v": Vector(2)}, 2, condition=["v"])
    with pytest.raises(ValueError, match="a CVAE generates given a condition; use its decode or sample"):
        generate(conditional, 1)
