"""Turn benchmarks/results/*.json into docs/benchmarks.md, tables, plots and README's blocks.

    python -m benchmarks.report

No measurement is typed by hand: every number of these pages comes from the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, readme, tables
from benchmarks.gpu import report as gpu_report
from benchmarks.machine import ROOT
from benchmarks.markdown import reflow
from benchmarks.page import page, title_of
from benchmarks.provenance import capability, processor
from benchmarks.results import (
    Files,
    cpu_columns,
    date_of,
    kind_of,
    load,
    one_thread,
    page_of,
    with_avx512,
)

Record = dict[str, Any]
PAGE = "benchmarks.md"


def full_page(name: str, document: Record, images: Path) -> str:
    """A page of full tables."""
    match kind_of(document):
        case "gpu":
            text = gpu_report.section(name, document, images)
        case "profile":
            text = tables.profile(document)
        case "kernels":
            text = tables.microbenchmarks(document)
        case "leaky":
            text = tables.leaky(document)
        case "sweep":
            text = tables.sweep(name, document, images)
        case _:
            text = tables.comparison(name, document, images)
    back = f"One of the tables behind [Benchmarks](../{PAGE}), written by `make bench-report`."
    return reflow(f"# {title_of(document)}\n\n{back}\n\n{text}")


def write_docs(files: Files, docs: Path) -> None:
    images, folder = docs / "images", docs / "benchmarks"
    for path in (images, folder):
        path.mkdir(parents=True, exist_ok=True)
    for name, document in files.items():
        (folder / page_of(name, document)).write_text(full_page(name, document, images))
    columns = cpu_columns(files)
    for document in with_avx512(columns)[:1] or columns[:1]:
        machine = document["machine"]
        where = f"{processor(machine)}, {capability(machine)}"
        subtitle = f"{where}\none thread, PyTorch {machine['torch']}, {date_of(document)[:10]}"
        plots.speed(images, one_thread(document), subtitle)
    (docs / PAGE).write_text(page(files))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args(argv)
    files = load(args.results)
    if not files:
        parser.error(f"no results in {args.results}; run `make bench-full` first")
    write_docs(files, args.docs)
    readme.write(args.readme, files)
    print(args.docs / PAGE)


if __name__ == "__main__":
    main()
