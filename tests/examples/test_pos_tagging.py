"""The part-of-speech example: sentences, features, the baseline, and what the RNN learns."""

from __future__ import annotations

import gzip
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
pos_tagging = importlib.import_module("pos_tagging")
sentences_data = importlib.import_module("_sentences")
RNN_CLASSES = importlib.import_module("_common").RNN_CLASSES

REAL_DATA = Path(os.environ.get("FASTRNN_DATA", "/nowhere")).absolute() / "ud_english_ewt"
SMALL = ("--hidden-size", "24", "--letter-hidden-size", "16", "--embedding-size", "16")
CONLLU = """\
# sent_id = 1
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
3.1\tthere\t_\tADV\t_\t_\t_\t_\t_\t_

# sent_id = 2
1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
2\t!\t!\tPUNCT\t.\t_\t1\tpunct\t_\t_
"""
SENTENCES = [[("Do", "AUX"), ("n't", "PART"), ("go", "VERB")], [("Go", "VERB"), ("!", "PUNCT")]]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


@pytest.fixture
def treebank() -> str:
    """The folder of the real treebank."""
    if not REAL_DATA.is_dir():
        pytest.skip("no folder $FASTRNN_DATA/ud_english_ewt")
    return str(REAL_DATA)


@pytest.fixture
def small_treebank(tmp_path: Path) -> Path:
    """Files of two sentences each; the second one packed."""
    folder = tmp_path / "treebank"
    folder.mkdir()
    (folder / "en_ewt-ud-dev.conllu").write_text(CONLLU)
    (folder / "en_ewt-ud-test.conllu.gz").write_bytes(gzip.compress(CONLLU.encode()))
    return folder


def example(*options: str) -> pos_tagging.Results:
    return pos_tagging.main(["--device", "cpu", *SMALL, *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having written nothing."""
    with pytest.raises(SystemExit) as exit_:
        pos_tagging.main(argv)
    assert exit_.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


# Sentences


def test_reads_conllu(small_treebank: Path) -> None:
    for name in ("en_ewt-ud-dev.conllu", "en_ewt-ud-test.conllu"):
        assert sentences_data.read_conllu(small_treebank, name) == SENTENCES


def test_reads_the_treebank(treebank: str) -> None:
    sentences = sentences_data.read_conllu(Path(treebank), "en_ewt-ud-dev.conllu")
    test = sentences_data.read_conllu(Path(treebank), "en_ewt-ud-test.conllu")
    assert (len(sentences), len(test)) == (2001, 2077)
    assert len({tag for sentence in test for _, tag in sentence}) == 17
    assert sum(map(len, test)) == 25_094


def test_generated_sentences() -> None:
    sentences = sentences_data.generated_sentences(2000, seed=1)
    assert sentences == sentences_data.generated_sentences(2000, seed=1)
    assert sentences[:500] != sentences_data.generated_sentences(500, seed=2)
    assert all(sentence[-1] == (".", "PUNCT") for sentence in sentences)
    assert max(map(len, sentences)) < 100
    tags: dict[str, set[str]] = {}
    for word, tag in (pair for sentence in sentences for pair in sentence):
        assert re.fullmatch(r"[a-z]+|[.,]", word)
        tags.setdefault(word, set()).add(tag)
    assert tags["that"] == {"DET", "PRON", "SCONJ"}
    assert tags["to"] == {"ADP", "PART"}
    assert tags["can"] >= {"AUX", "NOUN"}
    ambiguous = [word for word in tags if len(tags[word]) > 1]
    assert len(ambiguous) > 100  # the baseline cannot get these right, their neighbours tell


def test_most_frequent_tags() -> None:
    sentences = [[("a", "X"), ("a", "Y"), ("a", "Y"), ("b", "X"), ("c", "Z"), ("d", "X")]]
    test = [[("a", "X"), ("b", "X")], [("new", "Z")]]
    assert pos_tagging.most_frequent_tags(sentences, test) == [["Y", "X"], ["X"]]


def test_baseline_on_the_treebank(treebank: str) -> None:
    sentences = sentences_data.read_conllu(Path(treebank), "en_ewt-ud-dev.conllu")
    test = sentences_data.read_conllu(Path(treebank), "en_ewt-ud-test.conllu")
    tags = pos_tagging.most_frequent_tags(sentences, test)
    score = pos_tagging.Score.of(test, tags, pos_tagging.Encoder(sentences))
    assert score.all == pytest.approx(81.8, abs=0.1)


# Features and model


def test_encoder() -> None:
    encoder = pos_tagging.Encoder(SENTENCES)
    assert encoder.tags == ["AUX", "PART", "PUNCT", "VERB"]
    assert encoder.words == {"do": 2, "n't": 3, "go": 4, "!": 5}
    words, letters, tags = encoder([[("GO", "VERB"), ("?", "X")], [("Do", "AUX")]])
    assert words.tolist() == [[4, 1], [2, 0]]
    assert tags.tolist() == [[3, -100], [0, -100]]
    assert letters.shape == (2, 2, sentences_data.LETTERS)
    d, o = encoder.letters["D"], encoder.letters["o"]
    assert letters[1, 0].tolist() == [d, o] + [0] * 14
    assert letters[0, 1].tolist() == [1] + [0] * 15
    long, cut = encoder([[("o" * 8 + "x" * 9 + "o" * 8, "X")], [("o" * 16, "X")]])[1]
    assert long.tolist() == cut.tolist() == [[o] * 16]


def small_model(impl: str) -> tuple[pos_tagging.WordTagger, pos_tagging.Encoder]:
    torch.manual_seed(0)
    encoder = pos_tagging.Encoder(sentences_data.generated_sentences(50, seed=1))
    args = pos_tagging.parse_options([*SMALL])
    return pos_tagging.WordTagger(RNN_CLASSES[impl], encoder, args), encoder


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
def test_a_sentence_does_not_see_the_others(impl: str) -> None:
    model, encoder = small_model(impl)
    model = model.double().eval()
    sentences = sentences_data.generated_sentences(8, seed=2)
    words, letters, _ = encoder(sentences)
    together = model(words, letters)
    for row, sentence in enumerate(sentences):
        alone = model(*encoder([sentence])[:2])[0]
        torch.testing.assert_close(together[row, : len(sentence)], alone, rtol=1e-10, atol=1e-12)


def test_both_implementations_score_alike() -> None:
    (ours, encoder), (theirs, _) = small_model("fastrnn"), small_model("torch")
    theirs.load_state_dict(ours.state_dict())
    words, letters, _ = encoder(sentences_data.generated_sentences(8, seed=2))
    valid = words != pos_tagging.PADDING
    scores = []
    for model in (ours.double(), theirs.double()):
        torch.manual_seed(1)  # both hide and drop the same
        scores.append(model(words, letters)[valid])
    torch.testing.assert_close(*scores, rtol=1e-10, atol=1e-12)


def test_hides_rare_words_in_training() -> None:
    model, encoder = small_model("fastrnn")
    assert model.hide_probability[: 1 + sentences_data.UNKNOWN].tolist() == [0, 0]
    for word, i in encoder.words.items():
        expected = 1 / (1 + 4 * encoder.word_counts[word])
        assert model.hide_probability[i].item() == pytest.approx(expected)


# What it learns and writes


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
def test_learns_the_grammar(impl: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--impl", impl, "--limit", "300", "--epochs", "4", "--learning-rate", "0.02")
    assert results.data == "generated grammar"
    assert len(results.losses) == 4
    assert results.score.all > 90
    assert results.score.all > results.baseline.all + 10
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == (
        "no folder $FASTRNN_DATA/ud_english_ewt or data/ud_english_ewt: "
        "taking sentences of a generated grammar instead"
    )
    last = out.splitlines()[-1]
    assert re.fullmatch(r"pos_tagging: test accuracy \d+\.\d\d %, \S+ s, \S+ steps/s", last)
    assert err == ""


def test_learns_the_treebank(treebank: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--data", treebank, "--limit", "300", "--epochs", "2")
    assert results.data == "UD English EWT"
    assert results.losses[1] < 0.8 * results.losses[0]
    assert f"data from {treebank}" in capsys.readouterr().out


@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_compare_trains_both_alike(dropout: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss of up to 3 carries roundings of 2e-7, which 50 steps may let grow to 1e-5."""
    options = ("--compare", "--limit", "200", "--epochs", "4", "--dropout", dropout)
    comparison = example(*options).comparison
    assert comparison.step_difference <= 1e-5
    assert comparison.epoch_difference <= 1e-5
    assert capsys.readouterr().out.count("test accuracy") == 3


def test_same_seed_same_result() -> None:
    options = ("--limit", "40", "--epochs", "1", "--seed")
    first, again, other = (example(*options, seed).losses for seed in ("3", "3", "4"))
    assert first == again
    assert first != other


def test_validation_leaves_the_test_alone(
    small_treebank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", str(small_treebank), "--epochs", "1")
    assert sum(example(*options).score.by_tag.values()) >= 0
    (small_treebank / "en_ewt-ud-test.conllu.gz").unlink()
    example(*options, "--validate")
    out = capsys.readouterr().out
    assert "1 sentences with 2 words" in out or "1 sentences with 3 words" in out
    assert "validation accuracy" in out.splitlines()[-1]


# What it refuses


def test_damaged_files(small_treebank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, packed = sorted(small_treebank.iterdir())
    argv = ["--data", str(small_treebank)]
    content = packed.read_bytes()
    packed.write_bytes(content[:-20])
    assert refused(argv, capsys).endswith("stream marker was reached\n")
    packed.write_bytes(b"no gzip")
    assert f"error: {packed}: damaged gzip file: " in refused(argv, capsys)
    path.write_text(CONLLU.replace("do\tAUX", "do AUX"))
    assert refused(argv, capsys) == f"error: {path}, line 3: expected 10 columns, got 9\n"
    path.write_text(CONLLU.split("\n\n")[0])
    expected = "error: --validate needs at least 2 training sentences, got 1\n"
    assert refused([*argv, "--validate"], capsys) == expected
    path.write_bytes(CONLLU.encode("utf-16"))
    assert f"error: {path}: not UTF-8: " in refused(argv, capsys)
    path.write_text("# nothing\n\n")
    assert refused(argv, capsys) == f"error: {path}: no sentences\n"
    path.unlink()
    name = "en_ewt-ud-dev.conllu"
    assert refused(argv, capsys).endswith(f"treebank: no file {name} or {name}.gz\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dropout", "1"], "argument --dropout: expected a number from 0 to below 1, got 1"),
        (["--limit", "-3"], "argument --limit: expected a whole number of at least 1, got -3"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)


@pytest.mark.slow
def test_tags_the_treebank(treebank: str) -> None:
    results = pos_tagging.main(["--device", "cpu", "--data", treebank])
    assert results.score.all >= 88
    assert results.baseline.all < 82


@pytest.mark.slow
def test_tags_the_grammar() -> None:
    results = pos_tagging.main(["--device", "cpu", "--epochs", "5"])
    assert results.score.all >= 97
