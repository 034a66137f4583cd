"""Every picture has something in it, in the right places, and bad input says what it is."""

import io
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the 'plots' extra")
pytest.importorskip("sklearn", reason="needs the 'plots' extra")

from matplotlib.text import Text as Written

from mmvae_fast import plots
from mmvae_fast.modalities import Audio, Image, Sequence, Text, Vector
from mmvae_fast.models import CVAE, MMVAE, MoPoE
from mmvae_fast.plots.cells import draw_cell, kind_of, values_of
from mmvae_fast.plots.style import class_colours, new_figure, save_figure

WORDS = ("red", "green", "blue")


def modalities():
    return {
        "image": Image((3, 6, 6), hidden=(4,)),
        "text": Text(WORDS, 2, hidden=(4,)),
        "sound": Audio((4, 5), hidden=(4,)),
        "vector": Vector(3, hidden=(4,)),
    }


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MoPoE(modalities(), 3)


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(4, 3, 6, 6, generator=g),
        "text": torch.randint(2, 5, (4, 2), generator=g),
        "sound": torch.randn(4, 4, 5, generator=g),
        "vector": torch.randn(4, 3, generator=g),
    }


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=50)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def texts(figure):
    return [t.get_text() for t in figure.findobj(Written) if t.get_text()]


def drawn(figure, title):
    """It has its title, and is no blank page; nothing was left in pyplot."""
    assert title in texts(figure)
    assert pixels(figure).std() > 5
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_kinds_and_values(model, data):
    assert [kind_of(m) for m in model.modalities.values()] == ["image", "text", "audio", "vector"]
    assert values_of(model.modalities["text"], torch.tensor([[2, 4], [3, 0]])) == ["red blue", "green"]
    assert values_of(Text(5, 2), torch.tensor([[2, 4]])) == ["2 4"]
    assert values_of(model.modalities["vector"], data["vector"])[1].tolist() == pytest.approx(
        data["vector"][1].tolist()
    )


@pytest.mark.parametrize("cls", [MoPoE, MMVAE, lambda m, d: CVAE(m, d, condition=["vector"])])
@pytest.mark.parametrize("sampled", [False, True])
def test_grid(cls, data, sampled):
    torch.manual_seed(0)
    model = cls(modalities(), 3)
    figure = plots.cross_modal_grid(model, data, examples=[0, 2], sampled=sampled)
    drawn(figure, "Decoded from what was shown")
    shown = [t for t in ("image", "text", "sound", "vector") if t not in model.always_given]
    assert set(shown) <= {axis.get_title(loc="left") for axis in figure.axes}
    assert len(figure.axes) % (2 * len(shown)) == 0  # columns: two examples a target
    assert figure.axes[0].images and "data" in texts(figure)


def test_grid_leaves_out_what_an_example_lacks(model, data):
    data["mask"] = {"image": torch.tensor([False, True, True, True])}
    data["image"][0] = torch.nan
    figure = plots.cross_modal_grid(model, data, examples=[0, 1], subsets=[["image"], ["text"]])
    # of the example: its image, and all four from the image
    assert texts(figure).count("missing") == 5
    with pytest.raises(ValueError, match=r"examples is \[4\], expected numbers from 0 to 3"):
        plots.cross_modal_grid(model, data, examples=[4])


def test_cells_show_what_they_are_given():
    axis = new_figure().subplots()
    draw_cell(axis, "image", np.arange(4.0).reshape(1, 2, 2), limits=(0, 4))
    assert axis.images[0].get_array().tolist() == [[0, 1], [2, 3]] and axis.images[0].get_clim() == (0, 4)
    axis = new_figure().subplots()
    draw_cell(axis, "image", np.full((3, 2, 2), 5.0))
    assert axis.images[0].get_array().shape == (2, 2, 3)
    axis = new_figure().subplots()
    draw_cell(axis, "vector", np.array([1.0, -2.0]), limits=(-2, 1))
    assert [bar.get_height() for bar in axis.patches] == [1.0, -2.0]
    axis = new_figure().subplots()
    draw_cell(axis, "audio", np.zeros((2, 3)))
    assert axis.images[0].origin == "lower"
    axis = new_figure().subplots()
    draw_cell(axis, "text", " ".join(["word"] * 30))
    assert axis.texts[0].get_text().endswith("…")
    with pytest.raises(ValueError, match="kind is 'video'"):
        draw_cell(axis, "video", None)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_latent_map(method):
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3 - 1
    figure = plots.latent_map({"all": z, "some": z + 1}, labels, method=method, class_names=["zero", "one"])
    drawn(figure, "Latent space")
    assert [axis.get_title() for axis in figure.axes] == ["all", "some"]
    assert {"zero", "one"} <= set(texts(figure))
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 30


BAD = r"a$\b$_"  # no mathematics, and were it some, an error


def test_a_dollar_in_a_name_or_a_text_is_a_dollar():
    """In texts, in names of classes and sets, and in titles; those of modalities hold none."""
    model = MoPoE({"v": Vector(2, hidden=(4,)), "text": Text((BAD, "x"), 1, hidden=(4,))}, 2)
    data = {"v": torch.randn(3, 2), "text": torch.full((3, 1), 2)}
    for figure in (
        plots.cross_modal_grid(model, data, title=BAD),
        plots.latent_map({BAD: np.eye(3), "b": np.eye(3)}, [0, 1, 1], class_names=[BAD, "b"], legend=BAD, title=BAD),
        plots.latent_traversal(model, "text", title=BAD),
        plots.heatmap({BAD: {BAD: 0.5}}, title=BAD),
        plots.training_curves([{"epoch": 1, "elbo": -1.0, "kl": 1.0, "ll_v": -2.0}], names={"v": BAD}),
    ):
        assert pixels(figure).std() > 5 and any(BAD in text for text in texts(figure))
    axis = new_figure().subplots()
    draw_cell(axis, "text", BAD)  # in a figure of one's own
    assert pixels(axis.figure).std() > 0


def test_a_time_series_is_lines():
    assert kind_of(Sequence(5, 2)) == "sequence"
    axis = new_figure().subplots()
    draw_cell(axis, "sequence", np.arange(10.0).reshape(5, 2), limits=(0, 20))
    assert [line.get_ydata().tolist() for line in axis.lines] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert axis.get_ylim() == (-1, 21) and not axis.images
    model = MoPoE({"s": Sequence(5, 2, hidden=(4,)), "v": Vector(2, hidden=(4,))}, 2)
    drawn(plots.cross_modal_grid(model, {"s": torch.randn(3, 5, 2), "v": torch.randn(3, 2)}), "s")
    drawn(plots.latent_traversal(model, "s"), "s along single latent dimensions")


def test_latent_map_takes_the_principal_axes_of_one_panel():
    g = torch.Generator().manual_seed(0)
    wide, high = torch.randn(50, 3, generator=g), torch.randn(50, 3, generator=g)
    wide[:, 0] *= 20
    high[:, 1] *= 20
    figure = plots.latent_map({"wide": wide, "high": high}, axes_of="wide")
    x = figure.axes[0].collections[0].get_offsets()[:, 0]
    assert abs(np.corrcoef(x, wide[:, 0])[0, 1]) > 0.99
    x = figure.axes[1].collections[0].get_offsets()[:, 0]
    assert abs(np.corrcoef(x, high[:, 0])[0, 1]) > 0.9


def test_latent_map_of_one_dimension_and_bad_input(monkeypatch):
    drawn(plots.latent_map(torch.randn(9, 1)), "Latent space")
    z = torch.randn(9, 2)
    with pytest.raises(ValueError, match="method is 'lda'"):
        plots.latent_map(z, method="lda")
    with pytest.raises(ValueError, match="axes_of is 'b'"):
        plots.latent_map({"a": z}, axes_of="b")
    with pytest.raises(ValueError, match=r"labels has shape \[3\]"):
        plots.latent_map(z, [0, 1, 2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        plots.latent_map(z * torch.inf)
    with pytest.raises(ValueError, match=r"has shape \[9, 3\]"):
        plots.latent_map({"a": z, "b": torch.zeros(9, 3)})
    with pytest.raises(ValueError, match="got 3 latents, expected 4 or more"):
        plots.latent_map(z[:3], method="tsne")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"mmvae_fast\[umap\]"):
        plots.latent_map(z, method="umap")


@pytest.mark.parametrize("to", ["image", "text", "sound", "vector"])
def test_traversal(model, data, to):
    start = model.encode(data).point[0]
    figure = plots.latent_traversal(model, to, z=start, dims=[0, 2], steps=5)
    drawn(figure, f"{to} along single latent dimensions")
    assert len(figure.axes) == 10 and {"z0", "z2", "-2.5", "+0.0"} <= set(texts(figure))


def test_traversal_moves_one_dimension_and_finds_those_that_matter():
    class Decoder(torch.nn.Module):
        def forward(self, z):
            return z * torch.tensor([0.0, 1.0, 0.0, 3.0, 0, 0, 0, 0, 0, 0.5])

    model = MoPoE({"v": Vector(10, hidden=(2,), decoder=Decoder())}, 10)
    figure = plots.latent_traversal(model, "v", span=2.0, steps=3)
    names = [t for t in texts(figure) if t.startswith("z")]
    assert len(names) == 8 and names[:3] == ["z3", "z1", "z9"]
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0, 0, 0, -6, 0, 0, 0, 0, 0, 0])
    for bad, match in (
        ({"to": "w"}, "to is 'w'"),
        ({"to": "v", "steps": 1}, "steps is 1"),
        ({"to": "v", "dims": [10]}, "from 0 to 9"),
        ({"to": "v", "z": torch.zeros(3)}, r"z has shape \[3\]"),
    ):
        with pytest.raises(ValueError, match=match):
            plots.latent_traversal(model, **bad)


HISTORY = [
    {
        "epoch": i,
        "loss": 1.0 / i,
        "elbo": -10.0 / i,
        "kl": i / 3,
        "ll_image": -8.0 / i,
        "ll_text": -1.0,
        "val_elbo": -11.0,
    }
    for i in range(1, 6)
]


def test_training_curves(tmp_path):
    figure = plots.training_curves(HISTORY, warmup_epochs=2, title="a run", names={"text": "caption"})
    drawn(figure, "a run")
    assert {"ELBO", "KL divergence", "log-likelihood", "validation", "caption", "image", "warm-up"} <= set(
        texts(figure)
    )
    assert figure.axes[0].lines[0].get_ydata().tolist() == [epoch["elbo"] for epoch in HISTORY]
    (tmp_path / "history.json").write_text(json.dumps(HISTORY))
    assert plots.read_history(tmp_path) == plots.read_history(tmp_path / "history.json") == HISTORY
    drawn(plots.training_curves(tmp_path), "ELBO")
    (tmp_path / "history.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a history"):
        plots.training_curves(tmp_path)
    for bad in ([], [{"loss": 1.0}]):
        with pytest.raises(ValueError, match="expected a list of epochs"):
            plots.training_curves(bad)


def test_heatmap():
    table = {"a": {"b": 0.25}, "b": {"a": 1.0}, "a+b": {"c": float("nan")}}
    figure = plots.heatmap(table, title="shares")
    drawn(figure, "shares")
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (3, 3) and np.ma.count(np.ma.masked_invalid(image)) == 2
    assert {"0.25", "1.00", "a+b", "source", "target"} <= set(texts(figure))
    assert plots.heatmap(table, limits=None).axes[0].images[0].get_clim() == (0.25, 1.0)
    with pytest.raises(ValueError, match="table is empty"):
        plots.heatmap({})


def test_colours_differ():
    for count in (3, 15, 60):
        assert len({tuple(colour) for colour in class_colours(range(count))}) == count


def test_files(tmp_path):
    figure = plots.heatmap({"a": {"b": 0.5}})
    assert plots.save_figure(figure, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert plots.save_figure(figure, tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.pdf", "p.png"]


def test_a_class_that_the_font_has_no_letters_for_is_drawn_without_a_warning(tmp_path, recwarn):
    figure = plots.confusion_matrix([[3, 1], [0, 2]], ["\N{ROBOT FACE}", "\N{DOG FACE}"])
    assert save_figure(figure, tmp_path / "confusion.png").stat().st_size > 1000
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]
