"""docs/benchmarks.md, the tables behind it and README's blocks are what the results say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import test_docs

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

from benchmarks import page, provenance, readme, report, results, timing
from benchmarks.markdown import number, reflow

ROOT = Path(__file__).parents[2]
PAGE, TABLES = ROOT / "docs/benchmarks.md", sorted(ROOT.glob("docs/benchmarks/*.md"))
FILES = results.load(ROOT / "benchmarks/results")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages made anew. Where git does not know a commit, the page is believed about its age."""
    folder: Path = tmp_path_factory.mktemp("report")
    shutil.copy(ROOT / "README.md", folder)
    with pytest.MonkeyPatch.context() as patch:
        known = provenance.kernels_changed_since
        if any(known(d["machine"]["commit"]) is None for d in results.cpu_columns(FILES)):
            patch.setattr(provenance, "kernels_changed_since", as_the_page_says)
        report.main(["--docs", str(folder / "docs"), "--readme", str(folder / "README.md")])
    return folder


def as_the_page_says(commit: str) -> bool:
    words = " ".join(PAGE.read_text().split())
    return re.search(rf"commit {commit}; [^;]*; {provenance.OLDER}", words) is not None


def differences(made: Path, committed: Path) -> list[str]:
    """Files that are not what the report makes; pictures need only be there."""
    expected = {p.relative_to(made) for p in made.rglob("*") if p.is_file()}
    there = {p.relative_to(committed) for p in committed.glob("docs/benchmarks/*.md")}
    found = [f"{p}: the results have no such page" for p in sorted(there - expected)]
    for path in sorted(expected):
        if not (committed / path).exists():
            found.append(f"{path} is missing")
        elif path.suffix == ".md" and (made / path).read_text() != (committed / path).read_text():
            found.append(f"{path} is not what the report makes: run `make bench-report`")
    return found


def test_the_pages_are_what_the_report_makes(made: Path) -> None:
    assert not differences(made, ROOT)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/benchmarks.md", "docs/benchmarks/cpu-avx512.md"]
)
def test_a_figure_edited_by_hand_is_found(name: str, made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    assert not differences(made, copy)
    text = (copy / name).read_text()
    figure = re.search(r"\d+\.\d+(?= \()" if "cpu" not in name else r"(?<=\*\*)\d+\.\d+", text)
    assert figure is not None
    (copy / name).write_text(text[: figure.start()] + "99.9" + text[figure.end() :])
    assert differences(made, copy) == [
        f"{name} is not what the report makes: run `make bench-report`"
    ]


def test_a_page_or_picture_that_does_not_belong_or_lacks_is_found(
    made: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "docs/images/speed.png").unlink()
    (copy / "docs/benchmarks/old.md").write_text("old")
    assert len(differences(made, copy)) == 2


def test_no_figure_without_results() -> None:
    """All that is left are the constants of the method."""
    text = page.page({})
    assert re.findall(r"\d+\.\d+", text) == [f"{timing.OTHERS_ALLOWED:g}"]
    assert readme.speed({}) == readme.headline({}) == page.NOTHING
    assert "nothing has been measured" in readme.gpu({})


def test_the_pages_can_be_read() -> None:
    text = PAGE.read_text()
    prose = [x for x in test_docs.BLOCK.sub("", text).split("\n") if not x.startswith("|")]
    assert 500 < len(" ".join(prose).split()) <= 1500
    assert len(text.split()) <= 2500


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_links_of_tables_lead_somewhere(table: Path) -> None:
    test_docs.test_links_lead_somewhere(table)
    assert any(target == f"benchmarks/{table.name}" for _, target in test_docs.links(PAGE))


def test_what_is_lost_is_named() -> None:
    text = PAGE.read_text()
    one_thread = FILES["peers-1-thread"]
    cells = list(results.lost(one_thread))
    for row, peer, ratio in cells:
        named = rf"`{re.escape(row['id'])}`\s+{row['mode']}\s+\([^)]*{peer}\s+{number(ratio)}"
        assert re.search(named, text), row["id"]
    assert f"{len(cells)} of" in text


def test_older_kernels_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FILES["cpu"]["machine"]
    for changed, marked in [(True, True), (False, False), (None, False)]:
        monkeypatch.setattr(provenance, "kernels_changed_since", lambda _, c=changed: c)
        assert provenance.source(machine).endswith(provenance.OLDER) is marked
    gpu = {"gpu": "H200", "hash": provenance.hashes()[0]}
    assert provenance.OLDER not in provenance.source(gpu)
    assert provenance.OLDER in provenance.source({**gpu, "hash": "another"})


def test_what_is_not_recorded_is_not_invented() -> None:
    line = provenance.source({"cpu": "a processor"})
    assert line.count(provenance.UNKNOWN) == 4  # capability, torch, commit, date


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("AMD EPYC (family 26, model 2)", "Zen 5"),
        ("AMD EPYC 9354 (family 25, model 17)", "Zen 4"),
        ("AMD Ryzen (family 25, model 97)", "Zen 4"),
        ("AMD EPYC 7763 (family 25, model 1)", "Zen 3"),
        ("AMD Ryzen (family 25, model 33)", "Zen 3"),
        ("AMD Ryzen (family 23, model 49)", ""),
        ("Intel(R) Xeon(R) Processor (family 26, model 2)", ""),
        ("aarch64", ""),
    ],
)
def test_generations(cpu: str, name: str) -> None:
    assert provenance.generation(cpu) == name


def test_a_column_for_each_generation() -> None:
    """The newest results of each, and one picture, of the newest."""
    old = FILES["cpu"]
    machine = old["machine"]
    zen4 = {**old, "machine": {**machine, "cpu": "AMD EPYC (family 25, model 17)",
                               "date": "2026-01-01 00:00 UTC"}}  # fmt: skip
    newer = {**old, "machine": {**machine, "date": "2099-01-01 00:00 UTC"}}
    files = {**FILES, "cpu-zen4": zen4, "cpu-newer": newer}
    assert results.with_avx512(results.cpu_columns(files)) == [newer, zen4]
    header = next(line for line in readme.speed(files).split("\n") if line.startswith("| class"))
    assert header.count("Zen 5, AVX-512") == header.count("Zen 4, AVX-512") == 2


def test_blocks_are_replaced_where_they_stand() -> None:
    text = "a\n<!-- speed -->\nold\n<!-- /speed -->\nb\n"
    assert readme.replaced(text, "speed", "new") == text.replace("old", "new")
    empty = "<!-- speed --><!-- /speed -->"
    assert readme.replaced(empty, "speed", "new") == "<!-- speed -->\nnew\n<!-- /speed -->"
    for wrong in ["a", text + text, "<!-- /speed -->\n<!-- speed -->", "<!-- speed -->"]:
        with pytest.raises(ValueError, match="expected one <!-- speed -->"):
            readme.replaced(wrong, "speed", "new")


def test_lines_are_broken_anew() -> None:
    code = "`" + "word " * 30 + "`"
    text = f"# Title\n\nshort\nlines\n- an item {'word ' * 30}\n- {code}\n\n| a | b |\n"
    lines = reflow(text).split("\n")
    assert lines[:3] == ["# Title", "", "short lines"]
    assert lines[3].startswith("- an item")
    assert lines[4].startswith("  word")
    assert f"- {code}" in lines
    assert lines[-2:] == ["| a | b |", ""]
    block = "```\nshort\nlines\n```\n"
    assert reflow(block) == block
