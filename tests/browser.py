"""A page in headless Chromium: a copy of it, framed at a width, with a script that measures it from inside."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
DARK, LIGHT = "0", "1"  # as Blink counts its colour schemes

BEFORE = """<script>window.ran = 0; window.alert = window.print = () => { window.ran += 1 };</script>"""
SCRIPT = (Path(__file__).parent / "measure_page.js").read_text(encoding="utf-8")


def chromium() -> str | None:
    """The program, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Browser:
    """Chromium, with a profile of its own in `folder`."""

    program: str
    folder: Path

    def measure(self, page: str, *, width: int, scheme: str = LIGHT, print_rules: bool = False) -> dict[str, Any]:
        """What `measure_page.js` finds in a page of a width, in pixels.

        The copy has no content policy of its own, so that a script which a text brought along would run; it does not
        load itself again. With `print_rules` what holds in print holds in the window.
        """
        page = re.sub(r'<meta http-equiv="(?:Content-Security-Policy|refresh)"[^>]*>', "", page)
        page = page.replace("@media print {", "@media all {") if print_rules else page
        page = page.replace("<head>", f"<head>{BEFORE}", 1).replace("</body>", f"<script>{SCRIPT}</script></body>", 1)
        frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html.escape(page)}"></iframe>'
        path = self.folder / "framed.html"
        path.write_text(f'<!doctype html><meta charset="utf-8"><pre id="told"></pre>{frame}', encoding="utf-8")
        dumped = self._run(path, scheme, "--window-size=1600,1000", "--dump-dom")
        found = re.search(r'<pre id="told">(.*?)</pre>', dumped, re.DOTALL)
        assert found and found[1], f"the script did not come to its end:\n{dumped[:500]}"
        told: dict[str, Any] = json.loads(html.unescape(found[1]))
        return told

    def screenshot(self, page: Path, out: Path, width: int, height: int, scheme: str = LIGHT) -> None:
        """A picture of the top of a page, as it is."""
        self._run(page, scheme, f"--window-size={width},{height}", "--hide-scrollbars", f"--screenshot={out}")

    def pdf(self, page: Path, out: Path, scheme: str = LIGHT) -> None:
        """A page in print, as it is."""
        self._run(page, scheme, "--no-pdf-header-footer", f"--print-to-pdf={out}")

    def _run(self, page: Path, scheme: str, *options: str) -> str:
        command = [
            self.program, "--headless=new", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={self.folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=5000", *options, page.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
