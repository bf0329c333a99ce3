"""An evaluation as a page of the docs: `python -m tools.report_page FOLDER`.

FOLDER is what `configi eval MODEL --reference SOURCE --report FOLDER --plots` wrote. The page is
docs/embedded-report.md: what the model is and how it was made, then the report as it stands, plots in docs/assets/.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "embedded-report.md"
_PREFIX = "embedded-"
_HEAD = """\
# Report of the embedded model

SmolLM2-135M-Instruct at the widths of Config-I for mixtures (`bench/config-i-widths.toml`): gate and up 2 bits, down 3,
attention 4, the first and last two layers 8, groups of 64, embeddings kept; calibrated with 65,536 tokens of the text
that ships. What the same bytes are worth without it is in [Calibration](calibration.md#what-it-is-worth), what the
columns say in [Evaluation](evaluation.md#what-is-measured).

Sixteen passages were judged, of kinds in turn, so it holds fewer of the scripts than a full evaluation; no replies were
generated.

A model of 135 million parameters has little to spare, and 2 bits are few for it: this page shows what a report looks
like and what calibration does, not a model to use.

"""


def write_page(folder: Path) -> None:
    report = (folder / "report.md").read_text(encoding="utf-8")
    # Its title is the page's.
    body = report.partition("\n\n")[2]
    for plot in re.findall(r"\]\(([\w-]+\.svg)\)", body):
        shutil.copy(folder / plot, DOCS / "assets" / f"{_PREFIX}{plot}")
        body = body.replace(f"]({plot})", f"](assets/{_PREFIX}{plot})")
    PAGE.write_text(_HEAD + body, encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
