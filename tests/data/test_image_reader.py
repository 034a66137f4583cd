"""Images of every mode, from files, bytes and arrays, and back to files."""

import io
import json

import numpy as np
import pytest
import torch

from mmvae_fast.data import Reader
from mmvae_fast.data.image import ImageReader

Image = pytest.importorskip("PIL.Image")

GRAY = (np.arange(12, dtype=np.uint8) * 20).reshape(3, 4)  # 3 high, 4 wide


def reader(**options):
    return ImageReader(**{"size": (3, 4), "channels": 1, **options})


def png(image, **options):
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def test_file_bytes_and_array_are_the_same_image(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(GRAY).save(path)
    expected = torch.from_numpy(GRAY / np.float32(255))[None]
    for cell in (str(path), path, path.read_bytes(), {"bytes": path.read_bytes()}, GRAY, GRAY[..., None]):
        x = reader().read(cell)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected)
    torch.testing.assert_close(reader().read((GRAY / 255).astype(np.float32)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_white_is_white(mode, channels):
    white = {"I;16": 65535, "I": 65535, "F": 1.0, "1": 1, "CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128)}
    if mode == "P":
        image = Image.new("RGB", (4, 3), "white").convert("P")
    else:
        image = Image.new(mode, (4, 3), white.get(mode, 255 if mode == "L" else "white"))
    file = io.BytesIO()
    image.save(file, format="TIFF")
    x = reader(channels=channels).read(file.getvalue())
    assert x.shape == (channels, 3, 4)
    torch.testing.assert_close(x, torch.ones_like(x))


def test_sixteen_bits_are_kept():
    values = (np.arange(12) * 5000 + 3).astype(np.uint16).reshape(3, 4)
    x = reader().read(png(Image.fromarray(values)))
    torch.testing.assert_close(x, torch.from_numpy(values / np.float32(65535))[None])


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_what_is_transparent_shows_the_background(background):
    cell = png(Image.new("RGBA", (4, 3), (200, 0, 0, 0)))
    assert (reader(channels=3, background=background).read(cell) == background).all()


def test_orientation_of_the_camera_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    x = ImageReader(size=(4, 3), channels=1).read(png(Image.fromarray(GRAY), exif=exif))
    torch.testing.assert_close(x[0], torch.from_numpy(np.rot90(GRAY, -1) / np.float32(255)))


@pytest.mark.parametrize(("fit", "corner"), [("stretch", 0.0), ("crop", 0.0), ("pad", 1.0)])
def test_other_shapes_become_the_size(fit, corner):
    x = ImageReader(size=(8, 8), channels=3, fit=fit).read(np.zeros((4, 8), np.uint8))
    assert x.shape == (3, 8, 8)
    assert x[0, 0, 0] == corner
    assert x[0, 4, 4] == 0


def test_shrinking_averages():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    x = ImageReader(size=(8, 8), channels=1).read(board)
    torch.testing.assert_close(x, torch.full((1, 8, 8), 0.5), atol=0.01, rtol=0)


def test_size_and_channels_are_learned_from_the_first_image():
    r = ImageReader()
    with pytest.raises(ValueError, match="not known yet"):
        r.modality()
    r.fit([GRAY, np.zeros((9, 9, 3), np.uint8)])
    assert r.modality().shape == (1, 3, 4)
    assert r.read(np.zeros((9, 9, 3), np.uint8)).shape == (1, 3, 4)
    with pytest.raises(ValueError, match="no image to take size"):
        ImageReader().fit([])


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not an image"), (b"hello", "not an image"), (png(Image.fromarray(GRAY))[:50], "damaged|not an image"),
     (png(Image.effect_noise((64, 64), 50))[:1000], "damaged image"), (3, "is a int"), (None, "is a NoneType")],
)  # fmt: skip
def test_what_is_no_image_is_a_value_error(content, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        reader().read(content)
    if isinstance(content, bytes):
        path = tmp_path / "x.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.png: .*({said})"):
            reader().read(str(path))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        reader().read(str(tmp_path / "x.png"))
    with pytest.raises((ValueError, OSError)):
        reader().read(str(tmp_path))


@pytest.mark.parametrize(
    "pixels", [np.full((3, 4), 2.0), np.full((3, 4), np.nan), np.zeros((3, 4), np.int64), np.zeros(4), np.zeros((0, 4))]
)
def test_arrays_that_are_no_images(pixels):
    with pytest.raises(ValueError, match="expected"):
        reader().read(pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_written_is_read_back(channels, tmp_path):
    sample = torch.rand(channels, 3, 4)
    r = reader(channels=channels)
    path = r.write(sample, tmp_path / "deep" / "x.jpg")
    assert path == tmp_path / "deep" / "x.jpg.png"
    torch.testing.assert_close(r.read(str(path)), sample, atol=0.5 / 255 + 1e-6, rtol=0)
    shown = r.show(sample * 3 - 1)
    assert shown.dtype == np.uint8
    assert shown.shape == (3, 4, channels)


def test_augmentation_is_seeded_and_stays_in_range():
    r = reader(augment={"flip": True, "crop": 1, "jitter": 0.3})
    x = r.read(GRAY)
    before = x.clone()

    def draw(seed):
        return r.augment(x, torch.Generator().manual_seed(seed))

    assert all(torch.equal(draw(s), draw(s)) for s in range(3))
    drawn = torch.stack([draw(seed) for seed in range(60)])
    assert drawn.shape == (60, 1, 3, 4)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert torch.equal(x, before)
    assert len({tuple(d.flatten().tolist()) for d in drawn}) > 30
    assert torch.equal(reader().augment(x, torch.Generator()), x)
    only_flipped = reader(augment={"flip": True})
    seen = {torch.equal(only_flipped.augment(x, torch.Generator().manual_seed(s)), x.flip(-1)) for s in range(20)}
    assert seen == {True, False}


def test_config_round_trip():
    r = reader(
        fit="pad", background=0.0, augment={"crop": 2}, likelihood="laplace", scale=0.5, hidden=[8], network="conv"
    )
    again = Reader.from_config(json.loads(json.dumps(r.config())))
    assert again.config() == r.config()
    assert again.modality().config() == r.modality().config()
    assert again.modality().likelihood == "laplace"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (3,)}, "size is"),
        ({"size": 8}, "size is"),
        ({"channels": 2}, "channels is 2"),
        ({"fit": "x"}, "fit is"),
        ({"background": 2}, "background is 2"),
        ({"augment": {"flip": 1}}, "flip is 1"),
        ({"augment": {"crop": -1}}, "crop is"),
        ({"augment": {"jitter": 1}}, "jitter is 1"),
        ({"augment": {"spin": 1}}, "augment names"),
        ({"likelihood": "x"}, "likelihood is 'x'"),
    ],
)
def test_wrong_options_are_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        reader(**options)
