"""The lazy data set: samples, damaged files in both modes, worker processes, and readers that learn."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmvae_fast.data import CellError, Manifest, ManifestDataset, ManifestError, Reader, fit_readers
from mmvae_fast.data.image import ImageReader
from mmvae_fast.data.reader import reader_class
from mmvae_fast.modalities import Vector

pytest.importorskip("pyarrow")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")


@pytest.fixture
def readers():
    return {"image": ImageReader(size=(8, 8), channels=1, augment={"crop": 2})}


@pytest.fixture
def opened(digits):
    def make():
        return Manifest(digits / "train.csv", {"image": "image"}, ignore="all")

    return make


@pytest.fixture
def number_reader():
    """A reader of numbers that learns their mean."""

    class Number(Reader):
        def __init__(self):
            self.mean = None

        def fit(self, cells):
            values = [float(cell) for cell in cells]
            self.mean = sum(values) / len(values)

        def read(self, cell):
            return torch.tensor([float(cell) - self.mean])

        def modality(self):
            return Vector(1)

        def write(self, sample, path):
            raise NotImplementedError

        def show(self, sample):
            return sample.item() + self.mean

        def config(self):
            return {"kind": "number"}

    return Number()


def test_rows_are_read_when_asked_for(opened, readers):
    data = ManifestDataset(opened(), readers, rows=[0, 1, 7])
    assert len(data) == 3
    assert data[0] == {"image": None}
    assert data[1]["image"].shape == (1, 8, 8)
    assert torch.equal(data[1]["image"], data[1]["image"])


def test_what_is_kept_is_not_the_callers(opened, readers):
    data = ManifestDataset(opened(), readers, cache=True)
    before = data[1]["image"].clone()
    assert before.any()
    data[1]["image"].zero_()
    assert torch.equal(data[1]["image"], before)
    fresh = ManifestDataset(opened(), readers, cache=True)
    fresh[1]["image"].zero_()  # the one that was read
    assert torch.equal(fresh[1]["image"], before)


def test_augmentation_follows_torchs_generator(opened, readers):
    data = ManifestDataset(opened(), readers, augment=True)

    def draw(seed):
        torch.manual_seed(seed)
        return data[1]["image"]

    with torch.random.fork_rng():
        assert torch.equal(draw(0), draw(0))
        assert any(not torch.equal(draw(0), draw(seed)) for seed in range(1, 6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_counts_as_missing_and_is_reported(opened, readers, digits, workers):
    for row in (3, 21):
        (digits / f"img/{row}.png").write_bytes(b"broken")
    data = ManifestDataset(opened(), readers, on_error="missing")
    loader = DataLoader(data, 4, num_workers=workers, collate_fn=list)
    samples = [sample["image"] for batch in loader for sample in batch]
    assert [i for i, x in enumerate(samples) if x is None] == sorted({*range(0, 48, 5), 3, 21})
    lines = data.report().splitlines()
    assert lines[0].endswith("train.csv: 2 cells cannot be read")
    assert [line.split(",")[0].strip() for line in lines[1:]] == ["row 4", "row 22"]
    assert "3.png: not an image" in lines[1]


def test_a_damaged_file_stops_the_run_by_row(opened, readers, digits):
    (digits / "img/3.png").write_bytes(b"broken")
    data = ManifestDataset(opened(), readers)
    with pytest.raises(CellError, match=r"train.csv, row 4, column 'image': .*3.png: not an image"):
        [data[i] for i in range(len(data))]
    assert [fault.row for fault in data.faults()] == [3]
    with pytest.raises(ValueError, match="on_error is 'skip'"):
        ManifestDataset(opened(), readers, on_error="skip")


def test_cells_a_reader_cannot_learn_from_are_listed(digits, number_reader):
    (digits / "n.csv").write_text("n\n1\ntwo\n3\n\nfour\n".replace("\n\n", '\n""\n'))
    manifest = Manifest(digits / "n.csv", {"n": "n"})
    before = copy.deepcopy(number_reader)
    with pytest.raises(ManifestError) as error:
        fit_readers(manifest, {"n": number_reader})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[1] == "  row 2, n: could not convert string to float: 'two'"
    assert lines[2].startswith("  row 5, n: ")
    with pytest.raises(ManifestError, match="row 5, n"):  # those held out are read, too
        fit_readers(manifest, {"n": before}, rows=[0, 2])


def test_readers_learn_from_the_training_rows_alone(digits, number_reader):
    (digits / "n.csv").write_text("n\n1\n2\n9\n")
    assert fit_readers(Manifest(digits / "n.csv", {"n": "n"}), {"n": number_reader}, rows=[0, 1]) == []
    assert number_reader.mean == 1.5


def test_a_column_with_nothing_to_learn_from(digits, readers):
    (digits / "n.csv").write_text("image,b\n,1\n,2\n")
    with pytest.raises(ManifestError, match="n.csv, image: all cells are empty"):
        fit_readers(Manifest(digits / "n.csv", {"image": "image"}, ignore="all"), readers)


def test_size_is_learned_past_damaged_files_only_if_they_may_be_missing(opened, digits):
    (digits / "img/1.png").write_bytes(b"broken")
    reader = ImageReader()
    with pytest.raises(ManifestError, match=r"row 2, image: .*1.png: not an image"):
        fit_readers(opened(), {"image": reader})
    (skipped,) = fit_readers(opened(), {"image": reader}, on_error="missing")
    assert skipped.row == 1
    assert reader.modality().shape == (1, 8, 8)


@pytest.mark.parametrize("features", ["words", "pooled"])
def test_a_corrupt_image_of_patches_is_found_by_its_row(tmp_path, features):
    pillow, rng = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    for i in range(6):
        pillow.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    pillow.new("L", (3, 3)).save(tmp_path / "4.png")  # less than a patch
    (tmp_path / "m.csv").write_text("image,n\n" + "".join(f"{i}.png,1\n" for i in range(6)))
    manifest = Manifest(tmp_path / "m.csv", {"image": "image"}, ignore="all")

    def reader():  # one image alone has too few patches
        return {"image": reader_class("patches")(features=features, size=5, n_words=12, n_patches=10)}

    with pytest.raises(ManifestError, match="(?s)2 cells cannot be read.*row 3, image: .*row 5, image: "):
        fit_readers(manifest, reader())
    readers = reader()
    assert [fault.row for fault in fit_readers(manifest, readers, on_error="missing")] == [2, 4]
    assert ManifestDataset(manifest, readers, on_error="missing")[2] == {"image": None}
