"""An HTML page in one file: pictures and sounds are inside it, nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_CSS = """
:root { color-scheme: light dark; --line: #8884; --faint: #888; --good: #2e8b57; --bad: #c0392b; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 72rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.lead, figcaption, .faint { color: var(--faint); } figure { margin: 1rem 0 2rem; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
table { border-collapse: collapse; }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.reached { color: var(--good); } .missed { color: var(--bad); font-weight: bold; }
pre { padding: .9rem 1.1rem; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; }
.tones { display: flex; flex-wrap: wrap; gap: .8rem 1.4rem; }
.tones audio { width: 13rem; height: 2rem; display: block; }
"""


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, and whether it reached its target (None: it has none)."""

    text: str
    reached: bool | None = None


@dataclass(frozen=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""

    def html(self) -> str:
        head = "".join(f"<th{_number(i)}>{escape(h)}</th>" for i, h in enumerate(self.header))
        body = "".join(f"<tr>{''.join(map(_td, range(len(row)), row))}</tr>" for row in self.rows)
        note = f"<p class='faint'>{escape(self.note)}</p>" if self.note else ""
        return f"<h2>{escape(self.title)}</h2>{note}<table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    png: bytes

    def html(self) -> str:
        return (
            f"<h2>{escape(self.title)}</h2><figure><img alt='{escape(self.title, quote=True)}' "
            f"src='{_data_url('image/png', self.png)}'><figcaption>{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Tones:
    title: str
    note: str
    waves: Mapping[str, np.ndarray]
    sample_rate: int

    def html(self) -> str:
        sounds = {label: _data_url("audio/wav", wav(wave, self.sample_rate)) for label, wave in self.waves.items()}
        players = "".join(
            f"<div>{escape(label)}<audio controls src='{sound}'></audio></div>" for label, sound in sounds.items()
        )
        note = f"<p class='faint'>{escape(self.note)}</p>"
        return f"<h2>{escape(self.title)}</h2>{note}<div class='tones'>{players}</div>"


@dataclass(frozen=True)
class Code:
    title: str
    text: str

    def html(self) -> str:
        return f"<h2>{escape(self.title)}</h2><pre>{escape(self.text)}</pre>"


def page(title: str, lead: str, sections: Sequence[Table | Picture | Tones | Code]) -> str:
    """The whole document."""
    body = "\n".join(section.html() for section in sections)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><p class='lead'>{escape(lead)}</p>\n{body}\n</body></html>\n"
    )


def wav(wave: np.ndarray, sample_rate: int) -> bytes:
    """A waveform in [-1, 1] as the bytes of a 16-bit WAV file."""
    import wave as container

    buffer = io.BytesIO()
    with container.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _number(column: int) -> str:
    return " class='number'" if column else ""


def _td(column: int, cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td{_number(column)}>{escape(cell)}</td>"
    verdict = "" if cell.reached is None else " reached" if cell.reached else " missed"
    return f"<td class='number{verdict}'>{escape(cell.text)}</td>"


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
