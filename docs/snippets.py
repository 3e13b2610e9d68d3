"""Run the Python snippets of a document, from top to bottom, as one session.

    cd docs && python snippets.py rnn.md      (figures that the snippets draw go to docs/images)

A fenced block marked `python` is executed. If it begins with `>>>` it is a doctest: what it prints
must be what the document shows.
"""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def run(document: Path) -> tuple[int, list[str]]:
    """Run the snippets of `document`; returns their number and a report of each failed example.

    Code outside doctests raises its exceptions, at its own line of the document.
    """
    text = document.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    reports: list[str] = []
    blocks = list(FENCE.finditer(text))
    for block in blocks:
        code, line = block[1], text.count("\n", 0, block.start(1))
        if code.startswith(">>>"):
            parser = doctest.DocTestParser()
            test = parser.get_doctest(code, names, document.name, str(document), line)
            runner.run(test, out=reports.append, clear_globs=False)
            names = test.globs
        else:
            exec(compile("\n" * line + code, document, "exec"), names)
    return len(blocks), reports


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        count, reports = run(Path(argument))
        if reports:
            sys.exit("".join(reports))
        print(f"{argument}: {count} snippets ran")
