"""The examples run, and show what they say they show. (Their times are printed, never tested.)"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    if str(EXAMPLES) not in sys.path:  # as it is for a script that lies there
        sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drop_in():
    pytest.importorskip("sklearn")
    before = torch.get_num_threads()
    yield load("drop_in")
    torch.set_num_threads(before)


def test_drop_in(drop_in, capsys):
    """Our functions move a training curve by no more than a change of seed does, and about as much as other noise."""
    results = drop_in.main(["--epochs", "4", "--seeds", "3", "--latent", "16", "--hidden", "32"])
    for name in ("swapped", "fused"):
        assert 0 < results[name]["change"] <= results["seed"]["change"]
        assert results[name]["change"] < 3 * results["noise"]["change"]
    out = capsys.readouterr().out
    assert out.count("no more than a seed") == 2 and "MORE" not in out


def test_drop_in_variants_agree(drop_in):
    """Given z, the three compute the same KL and gradients; only the noise differs."""
    image, label, observed = (t[:32] for t in drop_in.load())
    assert observed.any(1).all() and not observed.all(0).any()
    results = []
    for fusion in drop_in.VARIANTS.values():

        def means(mus, logvars, mask, fusion=fusion):  # the KL of a fusion, its noise left out
            _, kl = fusion(mus, logvars, mask)
            return torch.zeros_like(mus[0]), kl

        torch.manual_seed(0)
        model = drop_in.MVAE(8, 16, means)
        loss = model.loss(image, label, observed)
        loss.backward()
        results.append([loss, model.image_encoder[0].weight.grad, model.label_encoder.weight.grad])
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pairs").is_dir(), reason="no real data in ../shared/data")
@pytest.mark.parametrize("missing", ["0", "0.5"])
def test_real_digits(missing, capsys):
    """A few epochs on a part of the data, with half of every modality missing or nothing: far above chance."""
    pytest.importorskip("librosa")
    pytest.importorskip("lightning")
    arguments = [str(REAL), "--models", "MoPoE", "--epochs", "8", "--rows", "2000", "--missing", missing]
    means = load("real_digits").main(arguments)
    assert means["MoPoE"] > 0.4
    assert "MoPoE, 8 epochs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pairs").is_dir(), reason="no real data in ../shared/data")
def test_captions_are_generated_with_one_digit(capsys):
    pytest.importorskip("tokenizers")
    pytest.importorskip("lightning")
    example = load("text_generation")
    assert not example.one_digit("one two") and not example.one_digit("a digit") and example.one_digit("the number one")
    figures = example.main(["--captions", str(REAL)])
    made = [share for way, share in figures.items() if way not in ("exact", "words")]
    assert len(made) == 2 and min(made) >= 0.9
    assert figures["exact"] >= 0.9
    assert "from one to another" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "fsdd").is_dir(), reason="no real data in ../shared/data")
def test_spoken_digits(tmp_path):
    """A short training on a part of the recordings: what is written and read again is still heard, far above chance."""
    pytest.importorskip("librosa")
    pytest.importorskip("soundfile")
    pytest.importorskip("lightning")
    arguments = [str(REAL), "--out", str(tmp_path), "--train", "600", "--test", "60", "--epochs", "15"]
    shares = load("spoken_digits").main(arguments)
    assert min(shares.values()) > 0.4
    assert len(list((tmp_path / "wav").glob("*.wav"))) == 60


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pairs").is_dir(), reason="no real data in ../shared/data")
@pytest.mark.parametrize(
    "name, arguments, holds",
    [
        ("autoencoder", ["--epochs", "4"], lambda r: max(r["Autoencoder"], r["VAE"]) < r["PCA"]),
        ("gan", [], lambda r: r["intended digit"] >= 0.95 and r["worst digit"] >= 0.9),
        ("cyclegan", [], lambda r: min(r["image->speech"], r["speech->image"]) >= 0.9),
        ("classifier", [], lambda r: r["both branches"] - 0.05 < r["both, half missing"] < r["both branches"]),
        ("classifier", [], lambda r: r["both branches"] > max(r["image branch alone"], r["speech branch alone"])),
        (
            "classifier",
            ["--unlabelled", "0.9", "--epochs", "10"],
            lambda r: r["both branches"] >= 0.98 and r["both, half missing"] >= 0.92,
        ),
    ],
)
def test_systems(name, arguments, holds):
    """Of the systems on real digits, as docs/systems.md has the figures."""
    pytest.importorskip("librosa")
    pytest.importorskip("lightning")
    result = load(name).main(["--data", str(REAL), *arguments])
    assert holds(result), result


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pairs").is_dir(), reason="no real data in ../shared/data")
def test_an_image_is_put_into_words(capsys):
    pytest.importorskip("tokenizers")
    pytest.importorskip("lightning")
    example = load("image_to_language")
    assert example.named("the digit two") == 2 and example.named("two or three") == example.named("a digit") == -1
    figures = example.main(["--data", str(REAL)])
    assert figures["text names the image's digit"] >= 0.9
    assert figures["text names one digit"] >= 0.99
    assert figures["image shows the caption's digit"] >= 0.9


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pairs").is_dir(), reason="no real data in ../shared/data")
def test_three_feature_spaces_are_fused(tmp_path, capsys):
    """With a part of the rows: what one modality says is found in the others, and all together say more than any."""
    for module in ("librosa", "soundfile", "lightning", "nltk", "sklearn", "matplotlib"):
        pytest.importorskip(module)
    picture = tmp_path / "fusion.png"
    arguments = ["--data", str(REAL), "--rows", "3000", "--test-rows", "500", "--out", str(picture)]
    figures = load("fusion").main(arguments)
    assert min(share for pair, share in figures.items() if "->" in pair) > 0.7
    assert figures["all three"] > max(figures[name] for name in ("patches", "words", "speech"))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "30 epochs in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pendigits").is_dir(), reason="no real data in ../shared/data")
def test_files_go_round(tmp_path, capsys):
    """Two of the kinds, by the command line: what came back as files is what went in, nearly."""
    for module in ("typer", "yaml", "pyarrow", "pydantic", "PIL", "sklearn", "matplotlib", "lightning"):
        pytest.importorskip(module)
    arguments = ["--only", "table", "--only", "pen", "--data", str(REAL), "--out", str(tmp_path / "all")]
    figures = load("round_trips").main([*arguments, "--pictures", str(tmp_path / "pictures")])
    assert figures["table"]["share of variance kept"] > 0.85
    assert figures["pen"]["digit right, written files read again"] > 0.85
    assert len(list((tmp_path / "all/pen/back/pen").glob("*.csv"))) == 100
    assert (tmp_path / "pictures" / "round_trip_pen.png").stat().st_size < 60_000


def test_sample_quality_without_data(tmp_path, capsys):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("sklearn")
    assert load("sample_quality").main(["--data", str(tmp_path)]) == {}
    assert f"{tmp_path}: holds no mnist/" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="no real data in ../shared/data")
def test_sample_quality(capsys):
    """Minutes of training: both generators far from noise, neither as good as real digits."""
    pytest.importorskip("torchmetrics")
    pytest.importorskip("lightning")
    arguments = ["--data", str(REAL), "--rows", "20000", "--epochs", "5", "--gan-epochs", "4", "--samples", "1000"]
    found = load("sample_quality").main(arguments)
    assert list(found) == ["VAE", "GAN", "real half"] and {row["rows"] for row in found.values()} == {1000}
    real = found["real half"]
    assert all(found[name]["distance"] > real["distance"] for name in ("VAE", "GAN"))
    assert all(found[name]["classifier_score"] > 2 for name in ("VAE", "GAN")) and real["classifier_score"] > 8
    assert "real half" in capsys.readouterr().out
