"""Pictures of classifiers, generators and their training."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the 'plots' extra")
pytest.importorskip("sklearn", reason="needs the 'plots' extra")

from mmvae_fast import plots
from mmvae_fast.modalities import Image, Text, Vector


def test_confusion_is_coloured_by_class_and_numbered_by_rows():
    figure = plots.confusion_matrix([[8, 2, 0], [0, 30, 10], [0, 0, 0]], ["a", "b", "c"])
    axis = figure.axes[0]
    shares = axis.images[0].get_array()
    np.testing.assert_allclose(shares[:2], [[0.8, 0.2, 0], [0, 0.75, 0.25]])
    assert np.ma.getmaskarray(shares)[2].all() or np.isnan(np.asarray(shares[2])).all()  # no row is of class c
    assert sorted(text.get_text() for text in axis.texts) == ["10", "2", "30", "8"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b", "c"]
    many = plots.confusion_matrix(np.eye(100))
    assert max(many.get_size_inches()) < 20 and not many.axes[0].texts
    for bad in (np.zeros((2, 3)), np.zeros(4), [[-1.0]]):
        with pytest.raises(ValueError, match=r"expected counts \[C, C\]"):
            plots.confusion_matrix(bad)
    with pytest.raises(ValueError, match="got 1 class_names, expected 2"):
        plots.confusion_matrix(np.eye(2), ["a"])


def test_lines_of_samples_of_any_modality():
    words = Text(["a", "b"], 3)
    image, gaussian = Image((1, 4, 4)), Vector(2)
    figure = plots.sample_rows(
        [
            ("real", image, torch.rand(5, 1, 4, 4)),
            ("made", image, torch.rand(3, 1, 4, 4)),
            ("text", words, words.tokenize(["a b", "b"])),
            ("low", gaussian, torch.tensor([[-3.0, 0.0]])),
            ("high", gaussian, torch.tensor([[0.0, 5.0]])),
            ("none", gaussian, torch.zeros(0, 2)),
        ]
    )
    assert len(figure.axes) == 6 * 5
    assert sum(bool(axis.images) for axis in figure.axes) == 8
    assert "a b" in {text.get_text() for axis in figure.axes for text in axis.texts}
    low, high = figure.axes[15], figure.axes[20]
    assert low.get_ylim() == high.get_ylim() and low.get_ylim()[0] < -3 and low.get_ylim()[1] > 5  # one scale
    with pytest.raises(ValueError, match="rows is empty"):
        plots.sample_rows([("none", gaussian, torch.zeros(0, 2))])


def test_curves_of_a_system(tmp_path):
    history = [
        {"epoch": 1, "seconds": 2.0, "generator_loss": 1.0, "penalty": None},
        {"epoch": 2, "seconds": 2.0, "generator_loss": 0.5, "val_generator_loss": 0.7, "penalty": 0.1},
    ]
    figure = plots.loss_curves(history, title="GAN")
    assert [axis.get_title() for axis in figure.axes] == ["generator loss", "penalty"]
    assert len(figure.axes[0].lines) == 2 and len(figure.axes[1].lines) == 1
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [1.0, 0.5])
    (tmp_path / "history.json").write_text(json.dumps(history))
    assert len(plots.loss_curves(tmp_path).axes) == 2
    with pytest.raises(ValueError, match="holds no figures"):
        plots.loss_curves([{"epoch": 1}])
    with pytest.raises(ValueError, match="expected a list of epochs"):
        plots.loss_curves([])
