"""Put the report of a run into docs/gallery.md: what it says first, and its heat map as a picture.

    python docs/gallery.py NAME RUN        # NAME: of a mark in gallery.md, as in `<!-- lab -->`

Writes docs/images/gallery_NAME.svg and replaces the text from the mark to the next heading.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pictures import IMAGES, ROOT, picture

GALLERY = ROOT / "docs" / "gallery.md"
OF_THE_MACHINE = ("- Base: ", "- Training and measuring", "- Of that, ", "- Started: ", "- Stages done: ")


def first_words(report: str) -> str:
    """What stands above the first heading of report.md, as a quotation, without what is of one machine alone."""
    top = report.split("\n## ", 1)[0].split("\n", 1)[1]
    lines = [line for line in top.strip().splitlines() if not line.startswith(OF_THE_MACHINE)]
    return "\n".join(f"> {line}".rstrip() for line in re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().splitlines())


def put(name: str, text: str) -> None:
    """Replace what follows a mark, up to the next heading.

    Raises:
        SystemExit: gallery.md has no such mark.
    """
    before, mark, rest = GALLERY.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    if not mark:
        raise SystemExit(f"{GALLERY} has no mark <!-- {name} -->")
    _, heading, after = rest.partition("\n## ")
    GALLERY.write_text(f"{before}{mark}{text}\n{heading}{after}", encoding="utf-8")


def main() -> None:
    """Take one report in."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    image = IMAGES / f"gallery_{name}.svg"
    image.write_text(picture(folder), encoding="utf-8")
    words = first_words((folder / "report.md").read_text(encoding="utf-8"))
    put(name, f"{words}\n\n![capabilities stage by stage](images/{image.name})\n")


if __name__ == "__main__":
    main()
