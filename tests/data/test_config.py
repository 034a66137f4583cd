"""The YAML file: what it becomes, and every way to get it wrong."""

import pytest

pytest.importorskip("pydantic")
yaml = pytest.importorskip("yaml")
pytest.importorskip("PIL")

from mmvae_fast.data import ConfigError  # noqa: E402
from mmvae_fast.data.config import check_config, read_config, write_config  # noqa: E402

GOOD = """
data: {train: train.csv, validation: 0.1}
modalities:
  image: {kind: image, size: [8, 8], channels: 1, likelihood: laplace}
model: {name: IWAE, latent_dim: 3, n_samples: 4, beta: 0.5}
training: {lr: 1e-3}
out: run
"""


@pytest.fixture
def read(tmp_path):
    def make(*changes, text=GOOD):
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return read_config(tmp_path / "config.yaml")

    return make


def test_a_good_one_becomes_readers_and_a_model(read, tmp_path):
    config = read()
    assert config.data.train == tmp_path / "train.csv"
    assert config.out == tmp_path / "run"
    assert config.training.lr == 0.001  # YAML 1.1 takes 1e-3 for a text
    assert config.columns() == {"image": "image"}
    readers = config.readers()
    model = config.make_model(readers)
    assert type(model).__name__ == "IWAE"
    assert (model.latent_dim, model.n_samples, model.beta) == (3, 4, 0.5)
    assert model.modalities["image"].likelihood == "laplace"
    again = config.make_model(readers)
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_written_and_read_again_it_is_the_same_from_anywhere(read, tmp_path):
    config = read(("validation: 0.1", "validation: v.csv, test: ../t.parquet, label: digit"))
    assert config.data.test == tmp_path.parent / "t.parquet"
    assert check_config(yaml.safe_load(write_config(config)), tmp_path / "elsewhere") == config


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("training:", "trainng:", "trainng: no such key; did you mean 'training'?"),
        ("{lr: 1e-3}", "{epoch: 3}", "training.epoch: no such key; did you mean 'epochs'?"),
        ("{lr: 1e-3}", "{epochs: 0}", "training.epochs: input should be greater than or equal to 1, got 0"),
        ("{lr: 1e-3}", "{batch_size: '3'}", "training.batch_size: input should be a valid integer, got '3'"),
        ("{lr: 1e-3}", "{lr: -1}", "training.lr: input should be greater than 0, got -1"),
        ("validation: 0.1", "validatoin: 0.1", "data.validatoin: no such key; did you mean 'validation'?"),
        ("validation: 0.1", "validation: 2", "data: validation is 2, expected a share of the rows"),
        ("validation: 0.1", "on_error: skip", "data.on_error: input should be 'stop' or 'missing', got 'skip'"),
        ("train: train.csv, ", "", "data.train: is missing"),
        ("kind: image, ", "", "modalities.image.kind: is missing"),
        ("kind: image,", "kind: image, column: a, columns: [b],", "has both column and columns"),
        ("out: run", "", "out: is missing"),
        ("out: run", "out: run\nout: again", "not YAML: the key 'out' is there twice, again in line 8"),
        ("out: run", "out: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_meant(read, before, after, said):
    with pytest.raises(ConfigError) as error:
        read((before, after))
    assert said in str(error.value)
    assert "config.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("kind: image", "kind: imag", "modalities.image.kind: no 'imag'; did you mean 'image'?"),
        ("likelihood: laplace", "liklihood: x", "modalities.image.liklihood: no such key; did you mean 'likelihood'?"),
        ("likelihood: laplace", "likelihood: x", "modalities.image: Image: likelihood is 'x'"),
        ("size: [8, 8]", "size: 8", "modalities.image: ImageReader: size is 8"),
    ],
)
def test_wrong_options_of_a_reader(read, before, after, said):
    with pytest.raises(ConfigError) as error:
        read((before, after)).readers()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("name: IWAE", "name: IWAEE", "model.name: 'IWAEE' is no model; did you mean 'IWAE'?"),
        ("beta: 0.5", "betas: 0.5", "model.betas: no such key; did you mean 'beta'?"),
        ("latent_dim: 3", "latent_dims: 3", "model.latent_dims: no such key; did you mean 'latent_dim'?"),
        ("n_samples: 4", "n_samples: -4", "model: n_samples is -4"),
    ],
)
def test_wrong_options_of_a_model(read, before, after, said):
    config = read((before, after))
    with pytest.raises(ConfigError) as error:
        config.make_model(config.readers())
    assert said in str(error.value)


@pytest.mark.parametrize(("text", "said"), [("", "holds a NoneType"), ("[]", "holds a list"), ("3", "holds a int")])
def test_files_of_something_else(read, text, said):
    with pytest.raises(ConfigError, match=said):
        read(text=text)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_names_that_are_no_identifiers_are_said(read):
    text = GOOD.replace("image: {kind: image,", "my-image: {kind: [image],")
    with pytest.raises(ConfigError, match="modalities.my-image.kind: "):
        read(text=text)
    text = GOOD.replace("image: {kind: image,", "my-image: {kind: image, column: a, columns: [a],")
    with pytest.raises(ConfigError, match=r"config.yaml: modalities.my-image: has both column and columns"):
        read(text=text)
    with pytest.raises(ConfigError, match=r"training.batch-size: no such key; did you mean 'batch_size'"):
        read(("lr: 1e-3", "batch-size: 3"))


@pytest.mark.parametrize("options", ["kind: language, tokenizer: x", "kind: sequence, channels: 2"])
def test_what_a_reader_learns_is_no_option(read, options):
    text = GOOD.replace("kind: image, size: [8, 8], channels: 1, likelihood: laplace", options)
    with pytest.raises(ConfigError, match=r"modalities.image.(tokenizer|channels): no such key"):
        read(text=text).readers()
