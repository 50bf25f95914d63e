"""Parts of a self-contained HTML page: frame and colours, tables, pictures and videos as data URIs."""

import base64
import io
import re
import subprocess
import tempfile
from html import escape
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aegis_eval.statistics.tables import Table
from aegis_policy.support.errors import AegisError

_CSS = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1d1f24; --soft: #5a5f6a; --muted: #757b87; --grid: #d5d7db;
  --good: #14693f; --bad: #a83220;
  --series-0: #b4520a; --series-1: #1f63b0; --series-2: #17775a; --series-3: #7a3fa8; --series-4: #a3246a;
  --series-5: #5c6b10; --series-6: #0f6f86; --series-7: #8a4b2f; --series-8: #5a5fb0; --series-9: #4d5563; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1d2026; --ink: #e8e9ec; --soft: #a9afba; --muted: #9299a5; --grid: #3b404a;
  --good: #6fcf9b; --bad: #f08d7c;
  --series-0: #f29a4a; --series-1: #74aef2; --series-2: #56c9a2; --series-3: #c29af0; --series-4: #f08abf;
  --series-5: #bccb62; --series-6: #6cc8de; --series-7: #d9a58b; --series-8: #a9aef2; --series-9: #b5bcc8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 8px 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 8px; }
h3, .card h2 { font-size: 1rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 70ch; }
.lead { font-size: 1.1rem; font-weight: 600; }
.films-of { margin-top: 16px; }
.soft { color: var(--soft); }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); }
.films { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(46%, 210px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 16px;
  min-width: 0; margin: 0; }
.wide { grid-column: 1 / -1; }
.run { border-top: 4px solid var(--run); }
.numbers { display: flex; gap: 24px; flex-wrap: wrap; }
.number b { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.number span { color: var(--soft); font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; width: 100%; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--soft); }
thead th { white-space: normal; vertical-align: bottom; }
tr.total td { font-weight: 600; }
svg { display: block; width: 100%; height: auto; max-width: 600px; margin: 0 auto; }
video { width: 100%; border-radius: 8px; background: #000; display: block; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 0.85rem; margin-top: 4px; }
img.scene { width: 100%; max-width: 220px; image-rendering: pixelated; border-radius: 8px; display: block;
  margin-bottom: 8px; }
dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 2px 12px; font-size: 0.92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
pre { overflow-x: auto; font-size: 0.8rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: 8px; padding: 12px; }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document that loads nothing from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def table(shown: Table) -> str:
    """A table of texts, which scrolls sideways where it does not fit; its total is set off."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in shown.header)
    lines = []
    for index, row in enumerate(shown.rows):
        mark = ' class="total"' if shown.total and index == len(shown.rows) - 1 else ""
        cells = f'<th scope="row">{escape(row[0])}</th>' + "".join(
            f"<td>{escape(cell)}</td>" for cell in row[1:]
        )
        lines.append(f"<tr{mark}>{cells}</tr>")
    body = "\n".join(lines)
    # Reachable by keyboard, since it may scroll.
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group">{inside}</div>'


def picture(image: NDArray[np.uint8], alt: str) -> str:
    """An (H, W, 3) uint8 image as PNG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return f'<img class="scene" alt="{escape(alt)}" src="{_data_uri("image/png", buffer.getvalue())}">'


def film(path: Path, alt: str, caption: str) -> str:
    """A video inside the page, as H.264 that browsers play.

    Raises:
        AegisError: the file is not a video.
    """
    source = _data_uri("video/mp4", _browser_video(path))
    return (
        f'<figure><video controls muted loop playsinline preload="metadata" aria-label="{escape(alt)}" '
        f'src="{source}"></video><figcaption>{caption}</figcaption></figure>'
    )


def _browser_video(path: Path) -> bytes:
    """The file itself if it is 4:2:0 H.264 already, else converted."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    probe = subprocess.run(
        [ffmpeg, "-hide_banner", "-i", str(path)], capture_output=True, text=True, check=False
    )
    if re.search(r"Video: h264\b.*\byuv420p\b", probe.stderr):
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "video.mp4"
        command = [ffmpeg, "-v", "error", "-i", str(path), "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
        # Even sides, as 4:2:0 needs them.
        command += ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-movflags", "+faststart", str(converted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
            raise AegisError(f"{path} cannot be shown as a video ({reason}): record the rollouts again.")
        return converted.read_bytes()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
