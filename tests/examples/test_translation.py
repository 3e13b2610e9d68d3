"""The translation example: its data, attention, decoding, and what it learns."""

from __future__ import annotations

import datetime
import gzip
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastrnn

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
dates = importlib.import_module("_dates")
data = importlib.import_module("_translation_data")
translation = importlib.import_module("translation")

REAL_DATA = Path(os.environ.get("FASTRNN_DATA", "/nowhere")).absolute() / "multi30k"
PARTS = ("train", "val", "test_2016_flickr")
GERMAN = ["Ein Hund läuft.", "Zwei Hunde spielen im Schnee.", "Ein Mann schläft."]
ENGLISH = ["A dog runs.", "Two dogs play in the snow.", "A man is asleep."]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


@pytest.fixture
def multi30k() -> str:
    """The folder of the real Multi30k."""
    if not REAL_DATA.is_dir():
        pytest.skip("no folder $FASTRNN_DATA/multi30k")
    pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    return str(REAL_DATA)


@pytest.fixture
def small_multi30k(tmp_path: Path) -> Path:
    """Six files of three sentences each; the English ones packed."""
    pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    folder = tmp_path / "elsewhere" / "multi30k"
    folder.mkdir(parents=True)
    for part in PARTS:
        (folder / f"{part}.de").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
        text = "\n".join(ENGLISH) + "\n"
        (folder / f"{part}.en.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture
def model() -> translation.Translator:
    """A small one, for sources of 9 and targets of 8 different tokens, that is sure of itself."""
    model = translation.Translator(fastrnn.RNN, 9, 8, 6, 10, 0.0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model


SOURCE = torch.tensor([[4, 5, 6, 7, 2], [8, 2, 0, 0, 0], [6, 6, 4, 2, 0]])
LENGTHS = torch.tensor([5, 2, 4])
TARGET = torch.tensor([[1, 4, 5, 6, 7, 2], [1, 6, 4, 2, 0, 0], [1, 2, 0, 0, 0, 0]])


SMALL = ("--embedding-size", "16", "--hidden-size", "32", "--beam", "2")


def example(*options: str) -> translation.Results:
    return translation.main(["--device", "cpu", *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having written nothing."""
    with pytest.raises(SystemExit) as exit_:
        translation.main(argv)
    assert exit_.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


# Tokens, numbers, batches


def test_bleu_is_sacrebleus(small_multi30k: Path) -> None:
    import sacrebleu

    task = data.Multi30k(small_multi30k, None)
    assert [task.join(task.split(text)) for text in ENGLISH] == ENGLISH
    assert task.score(ENGLISH, ENGLISH) == pytest.approx(100)
    worse = ["A dog is running.", *ENGLISH[1:]]
    expected = sacrebleu.corpus_bleu(worse, [ENGLISH]).score
    assert 10 < expected < 90
    assert task.score(worse, ENGLISH) == pytest.approx(expected)
    assert task.figure(expected) == f"BLEU {expected:.2f}"


def test_batches_are_padded(small_multi30k: Path) -> None:
    task = data.Multi30k(small_multi30k, None)
    task.source_vocabulary = data.Vocabulary(map(task.split, GERMAN), least=1)
    task.target_vocabulary = data.Vocabulary(map(task.split, ENGLISH), least=1)
    source, lengths, target = task.encode(task.train, torch.device("cpu")).batch([2, 1])
    assert lengths.tolist() == [5, 7]
    assert source[0, 4:].tolist() == [data.END, data.PADDING, data.PADDING]
    assert target[:, 0].tolist() == [data.BEGIN] * 2
    decoded = [task.join(task.target_vocabulary.decode(row[1:])) for row in target.tolist()]
    assert decoded == [ENGLISH[2], ENGLISH[1]]


# Dates


def ways_to_write(year: int, month: int, day: int) -> list[str]:
    pieces = dates.pieces(datetime.date(year, month, day))
    return [way.format(**pieces) for way in dates.WAYS]


def test_no_way_to_write_means_two_dates() -> None:
    """Each month of all years, and days that could be taken for months or for two days."""
    meaning: dict[str, tuple[int, ...]] = {}
    years = range(dates.FIRST_YEAR, dates.FIRST_YEAR + dates.YEARS)
    for date in itertools.product(years, range(1, 13), (1, 2, 3, 11, 12, 20, 22)):
        for text in ways_to_write(*date):
            assert meaning.setdefault(text, date) == date


def test_held_out_dates_are_held_out() -> None:
    parts = dates.make_dates(2000, 100, 200)
    assert [len(part) for part in parts] == [2000, 100, 200]
    isos = [iso for part in parts for _, iso in part]
    assert len(set(isos)) == len(isos)
    for text, iso in parts[2]:
        assert text in ways_to_write(*map(int, iso.split("-")))
    assert parts == dates.make_dates(2000, 100, 200)


# The network


def test_attention_is_that_of_the_formulas(model: translation.Translator) -> None:
    """All steps at once, as in training, and one after the other, as in writing."""
    states, hx = model.encode(SOURCE, LENGTHS)
    vectors, weights, _ = model.decode(TARGET, hx, states, SOURCE != data.PADDING)
    for b, length in enumerate(LENGTHS.tolist()):
        s, h = states[b, :length], hx[0, b]
        rnn = model.decoder
        for t, token in enumerate(TARGET[b]):
            gates = rnn.weight_ih_l0 @ model.target_embedding.weight[token] + rnn.bias_ih_l0
            h = torch.tanh(gates + rnn.weight_hh_l0 @ h + rnn.bias_hh_l0)
            a = torch.stack([(model.attention.weight @ h) @ state for state in s]).softmax(0)
            context = sum(a[i] * s[i] for i in range(length))
            v = torch.tanh(model.combine.weight @ torch.cat([context, h]))
            torch.testing.assert_close(weights[b, t, :length], a)
            assert (weights[b, t, length:] == 0).all()
            torch.testing.assert_close(vectors[b, t], v)


def test_lengths_and_packing_read_the_same(model: translation.Translator) -> None:
    other = translation.Translator(nn.RNN, 9, 8, 6, 10, 0.0)
    other.load_state_dict(model.state_dict())
    for ours, theirs in zip(
        model.encode(SOURCE, LENGTHS), other.encode(SOURCE, LENGTHS), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_padding_is_not_learnt(model: translation.Translator) -> None:
    """The loss of a batch is that of its rows alone, and no gradient reaches the padding."""
    total = sum(
        model.loss(SOURCE[i : i + 1, :length], LENGTHS[i : i + 1], TARGET[i : i + 1, : n + 1]) * n
        for i, (length, n) in enumerate(zip(LENGTHS.tolist(), (5, 3, 1), strict=True))
    )
    loss = model.loss(SOURCE, LENGTHS, TARGET)
    torch.testing.assert_close(loss, total / 9)
    loss.backward()
    gradient = model.source_embedding.weight.grad
    assert (gradient[data.PADDING] == 0).all()
    assert (gradient[4:].abs().sum(1) > 0).all()


# Decoding


def score(model: translation.Translator, row: int, sentence: tuple[int, ...]) -> float:
    """The log-probability per token of `sentence` as the translation of source `row`."""
    source, lengths = SOURCE[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1]
    states, h = model.encode(source, lengths)
    before, total = data.BEGIN, 0.0
    for token in sentence:
        vectors, _, h = model.decode(torch.tensor([[before]]), h, states, source != data.PADDING)
        total += translation.log_probabilities(model, vectors)[0, 0, token].item()
        before = token
    return total / len(sentence)


def written(tokens: Tensor) -> list[tuple[int, ...]]:
    """Each row up to its end."""
    rows = []
    for row in tokens.tolist():
        end = row.index(data.END) + 1 if data.END in row else len(row)
        assert not any(row[end:])
        rows.append(tuple(row[:end]))
    return rows


@torch.no_grad()
def test_greedy_takes_the_likeliest_token(model: translation.Translator) -> None:
    tokens, weights = translation.greedy(model, SOURCE, LENGTHS)
    assert weights.shape == (*tokens.shape, SOURCE.size(1))
    for row, sentence in enumerate(written(tokens)):
        for t, token in enumerate(sentence[:6]):
            others = [score(model, row, (*sentence[:t], k)) for k in (2, 4, 5, 6, 7)]
            assert score(model, row, (*sentence[:t], token)) == pytest.approx(max(others))


def test_a_beam_of_one_is_greedy(model: translation.Translator) -> None:
    for _ in range(10):
        nn.init.normal_(model.target_embedding.weight)  # also the output's
        greedy, _ = translation.greedy(model, SOURCE, LENGTHS)
        beam = translation.beam_search(model, SOURCE, LENGTHS, 1)
        assert written(beam) == written(greedy)


@torch.no_grad()
def test_a_wide_beam_finds_the_best_sentence(
    model: translation.Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that three tokens can say: 4 words, and an end after which there is nothing."""
    monkeypatch.setattr(translation, "longest", lambda source: 3)
    words = (4, 5, 6, 7)
    sentences = [*itertools.product(words, repeat=3)]
    for n in range(3):
        sentences += [(*start, data.END) for start in itertools.product(words, repeat=n)]
    found = written(translation.beam_search(model, SOURCE, LENGTHS, 200))
    narrow = written(translation.beam_search(model, SOURCE, LENGTHS, 2))
    for row in range(len(SOURCE)):
        best = max(sentences, key=lambda sentence: score(model, row, sentence))
        assert found[row] == best
        assert score(model, row, narrow[row]) <= score(model, row, best) + 1e-6


def test_what_stands_for_no_text_is_never_written(model: translation.Translator) -> None:
    model.output.bias.data[[data.PADDING, data.BEGIN, data.UNKNOWN]] = 100.0
    for tokens in (
        translation.greedy(model, SOURCE, LENGTHS)[0],
        translation.beam_search(model, SOURCE, LENGTHS, 3),
    ):
        for sentence in written(tokens):
            assert not {data.PADDING, data.BEGIN, data.UNKNOWN} & set(sentence)


# What it learns and writes


def test_learns_dates() -> None:
    results = example("--limit", "400", "--epochs", "3", "--batch-size", "8", *SMALL)
    assert results.data == "dates"
    assert len(results.losses) == len(results.validation_scores) == 3
    assert results.losses[0] > results.losses[1] > results.losses[2]
    assert results.losses[2] < 0.8 * results.losses[0]
    assert results.seconds > 0


def test_the_best_epoch_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is made the best by its validation score: its weights are tested."""
    scores = iter([10.0, 90.0, 50.0])
    weights = []

    def translate(model: nn.Module, *args: object) -> list[str]:
        weights.append(model.attention.weight.clone())
        return []

    monkeypatch.setattr(data.Dates, "score", lambda self, ours, right: next(scores, 0.0))
    monkeypatch.setattr(translation, "translate", translate)
    results = example("--epochs", "3", "--limit", "64", "--batch-size", "16", *SMALL)
    assert results.validation_scores == [10, 90, 50]
    first, second, third, *tested = weights
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert len(tested) == 2  # greedy, and by a beam
    assert all(torch.equal(second, weight) for weight in tested)


def test_small_files(small_multi30k: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (small_multi30k, small_multi30k.parent):
        results = example("--data", str(folder), "--epochs", "1", *SMALL)
        assert results.data == "Multi30k"
        assert results.picture.is_file()
        assert f"data from {small_multi30k}" in capsys.readouterr().out
    assert (
        example("--data", str(folder), "--dates", "--limit", "50", "--epochs", "1").data == "dates"
    )


def test_compare_on_multi30k(multi30k: str) -> None:
    """With dropout. Losses of 6 to 7, whose float32 spacing is 5e-7, over 10 steps."""
    results = example(
        *("--compare", "--data", multi30k, "--limit", "160", "--epochs", "2"),
        *("--batch-size", "32", *SMALL),
    )
    assert results.data == "Multi30k"
    assert results.losses[1] < results.losses[0]
    assert results.comparison.step_difference <= 1e-5


@pytest.mark.slow
def test_reads_98_percent_of_held_out_dates() -> None:
    results = example()
    assert results.greedy_score >= 98
    assert results.beam_score >= 98


@pytest.mark.slow
def test_translates_german(multi30k: str) -> None:
    """The default: 8 minutes of a core."""
    assert example("--data", multi30k).beam_score >= 15


# Errors


def test_no_sacrebleu(
    small_multi30k: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "sacrebleu" else find(name, *args),
    )
    message = refused(["--data", str(small_multi30k)], capsys)
    assert message == (
        "error: BLEU needs sacrebleu, which is not installed: pip install sacrebleu\n"
    )


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("val.de", lambda path: path.unlink(), "no file val.de.gz or val.de"),
        ("train.en.gz", lambda path: path.unlink(), "no file train.en.gz or train.en"),
        ("train.de", lambda path: path.write_text("Ein Hund.\n"), "1 lines in train.de, 3 in"),
        (
            "val.en.gz",
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "val.en.gz: damaged gzip file: ",
        ),
        (
            "test_2016_flickr.en.gz",
            lambda path: path.write_bytes(b"no gzip"),
            "test_2016_flickr.en.gz: damaged gzip file: ",
        ),
        ("train.de", lambda path: path.write_bytes(b"l\xe4uft\n"), "train.de: expected UTF-8: "),
        ("train.de", lambda path: path.write_bytes(b""), "train.de: no text in it"),
    ],
    ids=["no-german", "no-english", "lines", "truncated", "not-gzip", "latin-1", "empty"],
)
def test_bad_files(
    name: str,
    damage: Callable[[Path], object],
    message: str,
    small_multi30k: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(small_multi30k / name)
    error = refused(["--data", str(small_multi30k)], capsys)
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hidden-size", "33"], "--hidden-size: expected an even number, got 33"),
        (["--dropout", "1"], "--dropout: expected a number from 0 to below 1, got 1"),
        (["--dropout", "nan"], "--dropout: expected a number from 0 to below 1, got nan"),
        (["--beam", "0"], "--beam: expected a whole number of at least 1, got 0"),
        (["--learning-rate", "0"], "--learning-rate: expected a number above 0, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)
