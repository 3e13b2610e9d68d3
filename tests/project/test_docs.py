"""The documents: their snippets run, what they print is what they say, and their links lead on."""

from __future__ import annotations

import ast
import os
import re
import runpy
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
GUIDES = sorted(ROOT.glob("docs/howto/*.md"))
snippets = runpy.run_path(str(ROOT / "docs/snippets.py"))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = PROJECT["urls"]["Source"] + "/blob/main/"  # the README is shown outside the repository too

LINK = re.compile(r"\[(?P<text>(?:`[^`]+`|[^\]`])*)\]\((?P<target>[^)\s]+)\)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

documents = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def links(document: Path) -> list[tuple[str, str]]:
    """Text and target of each link; those into the repository by its address are made relative."""
    prose = BLOCK.sub("", document.read_text(encoding="utf-8")).replace(f"]({FILES}", "](")
    return [(link["text"], unquote(link["target"])) for link in LINK.finditer(prose)]


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub names them."""
    prose = BLOCK.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by torch itself
@documents
def test_snippets_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    _, reports = snippets["run"](document)
    assert not reports, "\n".join(reports)
    drawn = {f"images/{name}" for name in os.listdir("images")}
    assert drawn <= {target for _, target in links(document)}, "a figure that is not shown"


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for _, target in links(document):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            assert file.suffix == ".md", target
            assert anchor in anchors(file), target


def test_readme_has_absolute_links() -> None:
    prose = BLOCK.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    targets = [link["target"] for link in LINK.finditer(prose)]
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []
    assert sum(t.startswith(FILES) for t in targets) > 5


def test_index_has_every_guide() -> None:
    listed = {target.partition("#")[0] for _, target in links(ROOT / "docs/howto/index.md")}
    assert {guide.name for guide in GUIDES} - listed == {"index.md"}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_guides_are_short(guide: Path) -> None:
    assert len(guide.read_text(encoding="utf-8").split()) < 800  # two or three minutes, with code


def reasons(function: ast.FunctionDef) -> list[str]:
    """The texts that a function returns, as far as they do not depend on the call."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant | ast.JoinedStr):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            texts = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            found += [text.removeprefix("torch (").strip(" ()") for text in texts]
    return [text for text in found if len(text) > 3 and text != "None"]


# How the reasons begin that the CUDA half gives.
CUDA_REASONS = {
    "devices.cpp": ("no kernel for sm_", "the driver cannot", "this torch lacks"),
    "guard.cpp": (" has not been checked yet",),
    "rnn_cuda.cpp": ("torch (cuDNN",),
}


def test_every_reason_is_explained() -> None:
    """Why a call takes no kernel, as `fastrnn.info` says it."""
    functions = [
        function
        for name in ("_path.py", "_info.py")
        for function in ast.walk(ast.parse((ROOT / "fastrnn" / name).read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        and function.name in ("why_only_reference", "why_no_kernel", "_kernel")
    ]
    page = (ROOT / "docs/howto/which_kernel.md").read_text(encoding="utf-8")
    texts = [text for function in functions for text in reasons(function)]
    assert len(texts) > 8
    for name, begins in CUDA_REASONS.items():
        source = (ROOT / "csrc/cuda" / name).read_text(encoding="utf-8")
        found = [text for text in re.findall(r'"([^"\n]+)"', source) if text.startswith(begins)]
        assert len(found) == len(begins), name
        texts += [re.sub(r"^torch \(|\)$|: call it once $", "", text).strip() for text in found]
    assert [text for text in texts if text not in page] == []


def test_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


@documents
def test_code_is_where_the_text_says(document: Path) -> None:
    """A link named by code leads to a file that has this code, or this path, or this name."""
    for text, target in links(document):
        file = document.parent / target.partition("#")[0]
        code = re.fullmatch(r"`([^`]+)`", text)
        if code is None or "://" in target or not file.is_file() or target.endswith(code[1]):
            continue
        assert code[1] in file.read_text(encoding="utf-8"), f"{target} has no {code[1]}"


# What the checks above are worth.


def write(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_wrong_output_is_reported(tmp_path: Path) -> None:
    page = write(tmp_path, "```python\nx = 1\n```\n\n```python\n>>> x + 1\n3\n```\n")
    count, reports = snippets["run"](page)
    assert count == 2
    assert len(reports) == 1
    assert "line 6" in reports[0]
    assert "Expected:\n    3\nGot:\n    2" in reports[0]


def test_an_error_names_its_line(tmp_path: Path) -> None:
    page = write(tmp_path, "text\n\n```python\nx = 1\nx.y\n```\n")
    with pytest.raises(AttributeError) as error:
        snippets["run"](page)
    assert error.traceback[-1].lineno == 4  # counted from 0


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    for link in ("[there](nowhere.md)", "[part](#no-such-part)", "[`code`](page.md#no-part)"):
        with pytest.raises(AssertionError):
            test_links_lead_somewhere(write(tmp_path, f"# A title\n\n{link}\n"))
    test_links_lead_somewhere(write(tmp_path, "# A title: `one`\n\n[part](#a-title-one)\n"))


def test_misplaced_code_is_found(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("h = 0\n")
    test_code_is_where_the_text_says(write(tmp_path, "[`h = 0`](code.py)"))
    with pytest.raises(AssertionError, match=r"code\.py has no h = 1"):
        test_code_is_where_the_text_says(write(tmp_path, "[`h = 1`](code.py)"))
