import base64
import io
import wave
from html.parser import HTMLParser

import numpy as np
import pytest

from mmvae_fast.demo.page import Cell, Code, Picture, Table, Tones, page, wav


class Links(HTMLParser):
    """Everything a browser would fetch, the tags it met, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data):
        self.text += data


def parse(html: str) -> Links:
    parser = Links()
    parser.feed(html)
    parser.close()
    return parser


def assert_self_contained(html: str) -> None:
    found = parse(html)
    assert found.links
    assert all(link.startswith("data:") for link in found.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html.split("<body>")[0]


def document() -> str:
    return page(
        "a <b> & c",
        "lead <script>alert(1)</script>",
        [
            Table("figures <i>", ("", "<u>"), [["<x>", Cell("0.5", False)], ["y", Cell("<1", True)]], note="n & m"),
            Picture("pic's", "<caption>", b"\x89PNG rest"),
            Tones("sounds", "synthetic <tones>", {"<key>": np.zeros(10)}, 8000),
            Code("code", "a < b and 'c'"),
        ],
    )


def test_nothing_is_fetched():
    assert_self_contained(document())


def test_text_is_escaped_and_comes_out_as_it_went_in():
    found = parse(document())
    script = "<script>alert(1)</script>"
    for text in ("a <b> & c", script, "figures <i>", "<x>", "<1", "n & m", "<key>", "a < b and 'c'"):
        assert text in found.text
    assert not {"b", "i", "u", "x", "key", "script"} & set(found.tags)


def test_targets_are_marked():
    html = document()
    assert "class='number missed'>0.5" in html
    assert "class='number reached'>&lt;1" in html


def test_pictures_are_inside():
    png = base64.b64encode(b"\x89PNG rest").decode()
    assert f"data:image/png;base64,{png}" in document()


@pytest.mark.parametrize("peak", [0.5, 3.0])
def test_wav_holds_the_waveform(peak):
    with wave.open(io.BytesIO(wav(np.array([0.0, peak, -peak]), 8000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        samples = np.frombuffer(file.readframes(3), "<i2")
    top = round(min(peak, 1.0) * 32767)
    assert samples.tolist() == pytest.approx([0, top, -top], abs=1)
