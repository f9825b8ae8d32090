"""Take the picture of the viewer that the README shows: `python docs/screenshot.py --url URL --out docs/viewer.png`.

Needs a running service (`make demo`) and Debian's chromium.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Error, Page, sync_playwright

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_HAS_MASK = """(share) => {
    const canvas = document.getElementById("view");
    const colour = getComputedStyle(document.querySelector("#classes .swatch")).backgroundColor;
    const [red, green, blue] = colour.match(/\\d+/g).map(Number);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let outline = 0;
    for (let at = 0; at < pixels.length; at += 4) {
        const off = Math.abs(pixels[at] - red) + Math.abs(pixels[at + 1] - green) + Math.abs(pixels[at + 2] - blue);
        if (off < 90) outline += 1;
    }
    return outline > share * canvas.width * canvas.height;
}"""


def wait_for_masks(page: Page, frames: int, timeout_ms: float) -> None:
    """Wait until `frames` masks were drawn and the class's colour is on the picture."""
    page.wait_for_function(f"window.surgseg.framesShown >= {frames}", timeout=timeout_ms)
    page.wait_for_function(_HAS_MASK, arg=0.001, timeout=timeout_ms, polling=250)


def take(url: str, out: Path, *, size: tuple[int, int], frames: int, chromium: str) -> None:
    """Open the page, wait until masks are drawn and figures have settled, and write a PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url)
        wait_for_masks(page, frames, timeout_ms=60_000)
        page.screenshot(path=out)
        browser.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Take a picture of the running viewer.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/", help="address of the service")
    parser.add_argument("--out", type=Path, default=Path("docs/viewer.png"))
    parser.add_argument("--seed", type=int, default=0, help="which synthetic scene to show")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--frames", type=int, default=150, help="masks to wait for, so that figures settle")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    url = f"{chosen.url.rstrip('/')}/?{urlencode({'seed': chosen.seed})}"
    size = (chosen.width, chosen.height)
    try:
        take(url, chosen.out, size=size, frames=chosen.frames, chromium=chosen.chromium)
    except Error as error:
        print(f"No picture was taken: {error.message.splitlines()[0]}", file=sys.stderr)
        return 1
    print(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
