"""Means over an epoch's rows, however they fell into batches."""

from __future__ import annotations

import pytest
import torch

from mmvae_fast.training.means import Means


def test_means_are_over_the_rows_that_had_a_figure():
    means = Means()
    assert not means and means.read() == {}
    means.add({})
    assert not means
    means.add({"loss": (torch.tensor(6.0, requires_grad=True), 3), "right": (torch.tensor(2), 3)})
    means.add({"loss": (torch.tensor(1.0, dtype=torch.bfloat16), 1), "right": (torch.tensor(0), 1)})
    means.add({"loss": (torch.tensor(5.0), 2), "rare": (torch.tensor(9.0), 2), "none": (torch.tensor(0.0), 0)})
    assert means
    assert means.read() == {"loss": 2.0, "right": 0.5, "rare": 4.5}


def test_sums_are_as_wide_as_they_come():
    third = 1 / 3
    double, single = Means(), Means()
    for _ in range(3):
        double.add({"x": (torch.tensor(third, dtype=torch.float64), 1)})
        single.add({"x": (torch.tensor(third, dtype=torch.float16), 1)})
    assert double.read()["x"] == pytest.approx(third, abs=1e-15)
    assert single.read()["x"] == pytest.approx(float(torch.tensor(third, dtype=torch.float16)), abs=1e-7)


def test_figures_of_two_devices_are_summed_on_the_accelerator():
    means = Means()
    for _ in range(2):
        means.add({"constant": (torch.zeros(()), 1), "loss": (torch.zeros((), device="meta"), 1)})
    assert {values.device.type for values in means._sums.values()} == {"meta"}
