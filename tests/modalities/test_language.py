"""Language: exact likelihoods of an autoregressive decoder, generation, and any Unicode there and back."""

import copy
import itertools
import json
import logging

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Language, Modality, Vector
from mmvae_fast.modalities.language import END, PAD
from mmvae_fast.models import CVAE, JNF, MMVAE, MVAE, VAE, MoPoE, MultimodalVAE

pytest.importorskip("tokenizers")

TEXTS = [
    "a photo of the digit three",
    "the number three",
    "",
    "naïve café 日本 🎉 \u200d a\u0301",
    "<pad> <eos> </s> [UNK]",
    "  two  spaces\tand\nlines ",
    "\x00\x7f",
]
SMALL = {"width": 8, "heads": 2, "layers": 2, "vocabulary_size": 280}
SEED = 11


def alphabet(letters: str) -> dict:
    """A tokenizer of single letters: a vocabulary small enough to enumerate."""
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    return {
        "version": "1.0",
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": letters[0]},
    }


@pytest.fixture
def language():
    return Language.from_texts(TEXTS * 2, **SMALL)


def decoder_of(modality: Language, latent_dim: int = 3) -> nn.Module:
    """With weights large enough that z and every token matter."""
    torch.manual_seed(2)
    decoder = modality.make_decoder(latent_dim).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return decoder


@pytest.fixture
def decoder(language):
    return decoder_of(language)


# --- the tokenizer


def test_any_unicode_round_trips(language):
    ids = language.tokenize(TEXTS)
    assert ids.shape == (7, language.length) and ids.dtype == torch.int64
    assert language.detokenize(ids) == TEXTS
    language.check_values("text", ids)
    unseen = "Ωmega \U0001f600"
    assert language.detokenize(language.tokenize([unseen])) == [unseen]


def test_frequent_words_are_one_token_and_the_empty_text_is_its_end(language):
    assert len(language.encode(" three")) == 2 and len(language.encode(" thrce")) > 2
    assert language.tokenize([""])[0].tolist() == [END] + [PAD] * (language.length - 1)
    assert language.tokenize([]).shape == (0, language.length)


def test_training_a_tokenizer_is_deterministic():
    a, b = (Language.from_texts(TEXTS * 3, **SMALL).config() for _ in range(2))
    assert a == b


def test_texts_that_are_too_long_are_refused_or_cut_and_reported(caplog):
    modality = Language.from_texts(TEXTS, 6, **SMALL)
    with pytest.raises(ValueError, match="text 1 has 42 tokens, its end included, expected at most 6"):
        modality.tokenize(["a", "x y" * 13 + "zz"])
    with caplog.at_level(logging.WARNING):
        ids = modality.tokenize(["qwrtzk", "x", "qwrtzkq"], truncate=True)
    assert "2 of 3 texts have more than 6 tokens and were cut off, the first in row 0" in caplog.text
    assert modality.detokenize(ids) == ["qwrtzk", "x", "qwrtzk"]
    assert not (ids[0] == END).any()  # cut off, not ended


def test_bad_texts_are_refused(language):
    with pytest.raises(TypeError, match="Language.tokenize: got one string, expected a list of texts"):
        language.tokenize("three")
    with pytest.raises(TypeError, match="got a list with a int"):
        language.tokenize(["a", 3])
    with pytest.raises(ValueError, match="text 1: is not Unicode text"):
        language.tokenize(["a", "\ud800"])
    with pytest.raises(ValueError, match=r"from_texts: text 1 is not Unicode text \(.*surrogates"):
        Language.from_texts(["a", "\ud800"])
    with pytest.raises(ValueError, match=r"got shape \[3\]"):
        language.detokenize(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="token ids from 0 to 9999"):
        language.detokenize(torch.tensor([[0, 9999]]))


@pytest.mark.parametrize("row", [[5, PAD, PAD], [END, 5, PAD], [1, END, PAD], [PAD, PAD, PAD], [5, END, END]])
def test_rows_that_are_no_text_are_refused(row):
    modality = Language(alphabet("abcd"), 3, width=4, heads=1, layers=1)
    modality.check_values("t", torch.tensor([[4, END, PAD], [4, 5, 6], [4, 5, END]]))
    with pytest.raises(ValueError, match=r"modality 't': row 1 is .* as tokenize makes them"):
        modality.check_values("t", torch.tensor([[END, PAD, PAD], row]))


@pytest.mark.parametrize(
    "change, error",
    [
        ({"width": 9}, "width is 9, expected a multiple of heads, 2"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability below 1"),
        ({"word_dropout": -0.1}, "word_dropout is -0.1"),
        ({"vocabulary_size": 258}, "vocabulary_size is 258, expected 259 or more"),
        ({"length": 0}, "shape is"),
        ({"layers": 0}, "layers is"),
    ],
)
def test_options_that_cannot_be_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        Language.from_texts(TEXTS, **{**SMALL, **change})


@pytest.mark.parametrize("tokenizer, error", [({"a": 1}, ValueError), ("no JSON", ValueError), (3, TypeError)])
def test_bad_tokenizers_are_refused(tokenizer, error):
    with pytest.raises(error, match="Language: tokenizer is"):
        Language(tokenizer, 5)


def test_a_tokenizer_of_ones_own_neither_pads_nor_cuts():
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer.from_str(json.dumps(alphabet("abc")))
    own.enable_truncation(1)
    own.enable_padding(length=9)
    assert Language(own, 5).encode("abc") == [3, 4, 5, END]
    assert own.truncation is not None  # the caller's is as it was


def test_config_round_trip(language):
    again = Modality.from_config(json.loads(json.dumps(language.config())))
    assert type(again) is Language and again.config() == language.config()
    assert torch.equal(again.tokenize(TEXTS), language.tokenize(TEXTS))
    copied = copy.deepcopy(language)
    assert copied.config() == language.config()


# --- the likelihood


def test_probabilities_of_all_texts_sum_to_one():
    """Over every text of at most 4 tokens of {a, b, c}: ended ones, and beginnings of longer ones."""
    modality = Language(alphabet("abc"), 4, width=8, heads=2, layers=2)
    rows = []
    for n in range(4):
        rows += [[*t, END] + [PAD] * (3 - n) for t in itertools.product((3, 4, 5), repeat=n)]
    rows += itertools.product((3, 4, 5), repeat=4)
    x = torch.tensor(rows)
    assert len(x) == 1 + 3 + 9 + 27 + 81
    modality.check_values("t", x)
    z = torch.randn(3, dtype=torch.float64)
    log_p = modality.log_likelihood(x, decoder_of(modality)(z.expand(len(x), -1), x))
    assert log_p.std() > 0.1
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros((), dtype=torch.float64))


def test_log_likelihood_is_the_sum_of_the_steps(language, decoder):
    x, z = language.tokenize(TEXTS), torch.randn(7, 3, dtype=torch.float64)
    expected = torch.zeros(7, dtype=torch.float64)
    for row in range(7):
        memory, last = decoder.begin(z[row : row + 1]), None
        for t, token in enumerate(x[row]):
            if token == PAD:
                break
            log_p = decoder.step(z[row : row + 1], last, t, memory).log_softmax(-1)
            expected[row] += log_p[0, token]
            last = token[None]
    log_p = language.log_likelihood(x, decoder(z, x))
    torch.testing.assert_close(log_p, expected)
    mask = torch.arange(7) % 2 == 0
    torch.testing.assert_close(language.log_likelihood(x, decoder(z, x), mask), expected * mask)
    samples = torch.stack([decoder(z, x), decoder(-z, x)])
    torch.testing.assert_close(language.log_likelihood(x, samples)[0], expected)


def test_the_decoder_is_causal(language, decoder):
    """Logits at t depend on z and every earlier token, and on no other."""
    x, z = torch.randint(3, 280, (1, language.length)), torch.randn(1, 3, dtype=torch.float64)
    logits = decoder(z, x)[0]
    assert logits[:, [PAD, 1]].isneginf().all() and logits[:, END:].isfinite().all()
    for t in range(0, language.length, 5):
        changed = x.clone()
        changed[0, t] = 3 + (x[0, t] - 3 + 1) % 270
        moved = (decoder(z, changed)[0] - logits)[:, END:].abs().amax(-1)
        assert moved[: t + 1].max() == 0
        assert (moved[t + 1 :] > 1e-9).all()
    assert ((decoder(z + 1, x)[0] - logits)[:, END:].abs().amax(-1) > 1e-9).all()


def test_padding_is_ignored():
    short, long = (Language(alphabet("abcd"), n, width=8, heads=2, layers=2) for n in (4, 9))
    encoder = long.make_encoder(3).double().eval()
    cut = short.make_encoder(3).double().eval()
    weights = encoder.state_dict()
    cut.load_state_dict({**weights, "positions": weights["positions"][:5]})
    texts = ["abc", "", "d"]
    for whole, part in zip(encoder(long.tokenize(texts)), cut(short.tokenize(texts)), strict=True):
        torch.testing.assert_close(whole, part)
    blank = torch.zeros(2, 9, dtype=torch.int64)  # what a missing row holds
    assert all(value.isfinite().all() for value in encoder(blank))
    decoder = decoder_of(long)
    x, z = long.tokenize(texts), torch.randn(3, 3, dtype=torch.float64)
    garbage = torch.where(x == PAD, 5, x)
    torch.testing.assert_close(decoder(z, x)[:, 0], decoder(z, garbage)[:, 0])
    torch.testing.assert_close(
        long.log_likelihood(x, decoder(z, garbage)), long.log_likelihood(x, decoder(z, x)), rtol=0, atol=0
    )


def test_word_dropout_hides_tokens_in_training_alone(language):
    language.word_dropout, language.dropout = 0.9, 0.0
    decoder = language.make_decoder(3)
    x, z = language.tokenize(TEXTS[:1]), torch.randn(1, 3)
    decoder.eval()
    clean = decoder(z, x)
    torch.testing.assert_close(decoder(z, x), clean, rtol=0, atol=0)
    decoder.train()
    torch.manual_seed(0)
    noisy = decoder(z, x)
    assert torch.equal(noisy[:, 0], clean[:, 0])  # the beginning is never hidden
    assert not torch.allclose(noisy[:, 1:, END:], clean[:, 1:, END:])
    noisy[..., END:].sum().backward()
    assert decoder.blank.grad.abs().sum() > 0


# --- generation


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 7, "top_p": 0.8}])
def test_the_cache_changes_nothing(language, decoder, options):
    z = torch.randn(5, 3, dtype=torch.float64)
    fast = language.generate(decoder, z, seed=SEED, **options)
    calls = []
    decoder.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(language.generate(decoder, z, seed=SEED, **options, cache=False), fast)
    assert calls
    assert len(set(map(tuple, fast.tolist()))) > 1  # z and noise matter


def test_cached_logits_are_the_full_ones(language, decoder):
    x, z = torch.randint(3, 280, (2, language.length)), torch.randn(2, 3, dtype=torch.float64)
    memory, full = decoder.begin(z), decoder(z, x)
    for t in range(language.length):
        torch.testing.assert_close(decoder.step(z, x[:, t - 1] if t else None, t, memory), full[:, t])


def test_greedy_takes_the_most_probable_token_each_time(language, decoder):
    z = torch.randn(4, 3, dtype=torch.float64)
    x = language.generate(decoder, z)
    language.check_values("text", x)
    assert torch.equal(language.predict(decoder(z, x)), x)
    cold = [{"temperature": t} for t in (1e-6, 1e-7, 1e-39, 1e-42, 5e-324)]
    for options in ({"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 1e-9}, *cold):
        assert torch.equal(language.generate(decoder, z, seed=1, **options), x)


def test_any_temperature_draws_a_token_of_logits_of_any_type(language):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        decoder = Fixed([-3.0] * (language.vocabulary_size - 1) + [50.0], language.length)
        decoder.logits = decoder.logits.to(dtype)
        for temperature in (1e-42, 1e-20, 1e-6, 1e-3):
            x = language.generate(decoder, torch.zeros(2, 3), temperature=temperature, seed=0)
            assert bool((x == language.vocabulary_size - 1).all())


class Fixed(nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits, length):
        super().__init__()
        self.logits, self.length = torch.tensor(logits), length

    def forward(self, z, x):
        return self.logits.expand(z.shape[0], self.length, -1)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.7}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.76}, [0, 4 / 7, 0, 3 / 7]),  # of what top_k left
    ],
)
def test_draws_have_the_probabilities_they_should(options, expected):
    """A one-token text: END with 0.1, or a letter."""
    modality = Language(alphabet("abc"), 1)
    p = torch.tensor([0.0, 0.0, 0.1, 0.4, 0.2, 0.3])
    x = modality.generate(Fixed(p.log().tolist(), 1), torch.zeros(20_000, 1), seed=SEED, **options)
    shares = torch.bincount(x[:, 0], minlength=6) / len(x)
    assert shares[:2].sum() == 0
    torch.testing.assert_close(shares[2:], torch.tensor(expected), atol=0.015, rtol=0)
    assert torch.equal(shares[2:] == 0, torch.tensor(expected) == 0)


def test_draws_depend_on_the_seed_and_the_row_alone(language, decoder):
    z = torch.randn(6, 3, dtype=torch.float64)

    def draw(z, **options):
        return language.generate(decoder, z, temperature=1.0, **options)

    state = torch.random.get_rng_state()
    x = draw(z, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(draw(z, seed=1), x)
    assert torch.equal(draw(z[:2], seed=1), x[:2])
    assert not torch.equal(draw(z, seed=2), x)
    a, b = (draw(z, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_generation_stops_where_all_texts_have_ended():
    modality, steps = Language(alphabet("ab"), 50), []
    always_end = Fixed([-torch.inf, -torch.inf, 5.0, 0.0, 0.0], 50)
    always_end.register_forward_hook(lambda *_: steps.append(1))
    x = modality.generate(always_end, torch.zeros(3, 2))
    assert len(steps) == 1 and x.tolist() == [[END] + [PAD] * 49] * 3
    never = Fixed([-torch.inf, -torch.inf, -5.0, 0.0, 1.0], 50)
    assert modality.generate(never, torch.zeros(2, 2)).tolist() == [[4] * 50] * 2
    assert modality.generate(never, torch.zeros(0, 2)).shape == (0, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_bad_options_of_generation(language, decoder, options):
    with pytest.raises(ValueError, match=f"generate: {next(iter(options))} is "):
        language.generate(decoder, torch.zeros(1, 3, dtype=torch.float64), **options)


# --- in models

ROWS = 5
MASK = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], dtype=torch.bool)
MODELS = {
    "MVAE": lambda m: MVAE(m, 3),
    "MoPoE": lambda m: MoPoE(m, 3),
    "MMVAE": lambda m: MMVAE(m, 3, n_samples=2),
    "JNF": lambda m: JNF(m, 3, joint_hidden=(6,), flow_hidden=(4,)),
    "CVAE": lambda m: CVAE(m, 3, condition=["vector"], context_dim=2, joint_hidden=(6,)),
    "VAE": lambda m: VAE({"text": m["text"]}, 3),
}


@pytest.fixture(params=MODELS)
def model(request, language):
    torch.manual_seed(4)
    return MODELS[request.param]({"text": language, "vector": Vector(2, hidden=(6,))}).eval()


@pytest.fixture
def batch(language, model):
    batch = {"text": language.tokenize(TEXTS[:ROWS]), "vector": torch.randn(ROWS, 2)}
    return {name: batch[name] for name in model.modalities}


def gradients(model, batch, mask):
    model.zero_grad()
    out = model(batch, mask, seed=SEED)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_models_train_on_it(model, batch):
    out, grads = gradients(model.train(), batch, None)
    assert out.loss.isfinite() and out.log_likelihood["text"] < 0
    own = {name: g for name, g in grads.items() if name.startswith("decoders.text")}
    assert own and all(g.isfinite().all() and g.abs().sum() > 0 for n, g in own.items() if not n.endswith("blank"))


def test_missing_texts_count_nothing_whatever_they_hold(model, batch):
    mask = {name: MASK[:, i] for i, name in enumerate(("text", "vector")) if name in batch}
    out, grads = gradients(model, batch, mask)
    dirty = {**batch, "text": torch.where(MASK[:, :1], batch["text"], -999)}
    other, other_grads = gradients(model, dirty, mask)
    torch.testing.assert_close(other, out, rtol=0, atol=0)
    torch.testing.assert_close(other_grads, grads, rtol=0, atol=0)
    assert all(g.isfinite().all() for g in grads.values())
    torch.testing.assert_close(
        model.log_likelihood(batch, mask, 4, seed=1), model.log_likelihood(dirty, mask, 4, seed=1), rtol=0, atol=0
    )


def test_the_estimate_does_not_depend_on_how_many_samples_go_together(model, batch, monkeypatch):
    whole = model.log_likelihood(batch, n_samples=7, seed=1)
    assert whole.shape == (ROWS,) and whole.isfinite().all()
    torch.testing.assert_close(model.log_likelihood(batch, n_samples=7, seed=1, chunk=3), whole)
    monkeypatch.setattr("mmvae_fast.models.base._MANY_ROWS", 2 * ROWS)
    torch.testing.assert_close(model.log_likelihood(batch, n_samples=7, seed=1), whole)


def test_all_verbs_generate(model, batch, language):
    text = model.reconstruct(batch)["text"]
    assert text.shape == batch["text"].shape and text.dtype == torch.int64
    language.check_values("text", text)
    assert torch.equal(model.translate(batch, "text"), text)
    samples = model.sample(3, seed=1)["text"]
    language.check_values("text", samples)
    assert torch.equal(model.sample(3, seed=1)["text"], samples)
    z = torch.randn(2, 3, 3)
    decoded = model.decode(z, "text")["text"]
    assert decoded.shape == (2, 3, language.length)
    if not isinstance(model, CVAE):  # whose decoder takes a context as well
        assert torch.equal(decoded[1], language.generate(model.decoders["text"], z[1]))
    with pytest.raises(ValueError, match="modality 'text': the parameters of an autoregressive likelihood are those"):
        model.decode(z, "text", params=True)


def test_no_row_at_all(model, batch):
    empty = {name: x[:0] for name, x in batch.items()}
    out = model(empty)
    out.loss.backward()
    assert out.loss == 0
    assert model.log_likelihood(empty, n_samples=2).shape == (0,)
    assert model.reconstruct(empty)["text"].shape == (0, batch["text"].shape[1])


def test_a_model_comes_back_from_its_folder(model, batch, tmp_path):
    again = MultimodalVAE.load(model.save(tmp_path / "model")).eval()
    assert torch.equal(again.reconstruct(batch)["text"], model.reconstruct(batch)["text"])
    assert again.modalities["text"].detokenize(batch["text"]) == TEXTS[:ROWS]


def test_training_steps_compile_to_one_graph(language):
    language.dropout = language.word_dropout = 0.0
    language.layers = 1
    model = MVAE({"text": language, "vector": Vector(2, hidden=(6,))}, 3).train()
    batch = {"text": language.tokenize(TEXTS[:2]), "vector": torch.randn(2, 2)}
    torch._dynamo.reset()  # earlier tests may have used up its limit of recompilations
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch, MASK[:2], seed=1), model(batch, MASK[:2], seed=1))


def test_custom_networks_need_no_cache(language):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, language.vocabulary_size)

        def forward(self, z, x):
            return self.linear(z).unsqueeze(1).expand(-1, language.length, -1)

    custom = Language(language.tokenizer, language.length, decoder=Decoder())
    model = VAE({"text": custom}, 2)
    model({"text": language.tokenize(TEXTS)}).loss.backward()
    assert model.sample(3, seed=0)["text"].shape == (3, language.length)
