"""The sentiment example, called as a program: what it learns, writes and refuses."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")
pytest.importorskip("sklearn", reason="the bag of words of the example is scikit-learn's")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sentiment = importlib.import_module("sentiment")
reviews_data = importlib.import_module("_reviews")
RNN_CLASSES = importlib.import_module("_common").RNN_CLASSES

REAL_DATA = Path(os.environ.get("FASTRNN_DATA", "/nowhere")).absolute() / "rt_polarity"
SMALL = ("--limit", "600", "--epochs", "2", "--embedding-size", "20", "--hidden-size", "16")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


@pytest.fixture
def reviews() -> str:
    """The folder of the real film reviews."""
    if not REAL_DATA.is_dir():
        pytest.skip("no folder $FASTRNN_DATA/rt_polarity")
    return str(REAL_DATA)


def example(*options: str) -> sentiment.Results:
    return sentiment.main(["--device", "cpu", *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having written nothing."""
    with pytest.raises(SystemExit) as exit_:
        sentiment.main(["--device", "cpu", *argv])
    assert exit_.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


# The sentences


def judge(words: list[str]) -> int:
    """The label of a made-up sentence, by its words alone: 1 for praise."""
    good = {"clever", "moving", "funny", "fresh"}
    clauses = " ".join(words).split(" , ")
    (main,) = (clause for clause in clauses if not clause.startswith("although "))
    (concession,) = [clause for clause in clauses if clause.startswith("although ")] or [None]

    def praises(clause: str) -> bool:
        denied = re.search(r" is (not|hardly|anything but|never) ", clause) is not None
        return (clause.split()[-1] in good) != denied

    assert concession is None or praises(concession) != praises(main)
    return int(praises(main))


def test_made_up_sentences_mean_their_labels() -> None:
    sentences = reviews_data.made_up_sentences(500)
    assert [judge(words) for words in sentences.words] == sentences.labels
    assert sum(sentences.labels) == 250
    assert len({tuple(words) for words in sentences.words}) > 400


def test_split_is_fixed_and_without_overlap() -> None:
    sentences = sentiment.Sentences([[str(i)] for i in range(1000)], [i % 2 for i in range(1000)])
    parts = sentiment.split(sentences, None)
    assert [len(part.words) for part in parts] == [810, 90, 100]  # learn, choose, test
    together = [words[0] for part in parts for words in part.words]
    assert sorted(map(int, together)) == list(range(1000))
    assert together[:10] != [str(i) for i in range(10)]
    torch.manual_seed(7)
    assert sentiment.split(sentences, None) == parts
    for part in parts:
        assert part.labels == [int(words[0]) % 2 for words in part.words]


def test_numbers_are_for_words_seen_twice() -> None:
    sentences = sentiment.Sentences([["a", "b", "a"], ["c", "b"]], [0, 1])
    numbers = sentiment.number_words(sentences)
    assert numbers == {"a": 2, "b": 3}
    words, lengths, labels = sentiment.to_tensors(sentences, numbers, torch.device("cpu"))
    assert words.tolist() == [[2, 3, 2], [reviews_data.UNKNOWN, 3, sentiment.PADDING]]
    assert lengths.tolist() == [3, 2]
    assert labels.tolist() == [0.0, 1.0]


# The network


def small_model(impl: str, sequences: str = "lengths") -> sentiment.SentimentModel:
    options = ["--sequences", sequences, "--embedding-size", "5", "--hidden-size", "6"]
    args = sentiment.parse_options(options)
    torch.manual_seed(0)
    return sentiment.SentimentModel(RNN_CLASSES[impl], 11, args).double().eval()


@pytest.mark.parametrize("way", ["lengths", "packed", "torch"])
def test_padding_does_not_matter(way: str) -> None:
    """The score of a sentence is the same alone, and in a batch with longer ones: in float64."""
    model = small_model("torch" if way == "torch" else "fastrnn", way.replace("torch", "packed"))
    lengths = torch.tensor([4, 9, 1, 6])
    words = torch.randint(2, 11, (4, 9))
    words[torch.arange(9) >= lengths[:, None]] = sentiment.PADDING
    together = model(words, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = model(words[i : i + 1, :length], lengths[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-13)


def test_all_ways_give_the_same_scores_and_gradients() -> None:
    words, lengths = torch.randint(2, 11, (5, 8)), torch.tensor([3, 8, 8, 1, 5])
    models = [small_model("fastrnn"), small_model("fastrnn", "packed"), small_model("torch")]
    assert [model.packed for model in models] == [False, True, True]
    scores = [model(words, lengths) for model in models]
    for score in scores:
        score.square().sum().backward()
    for model, score in zip(models[1:], scores[1:], strict=True):
        torch.testing.assert_close(score, scores[0], rtol=1e-12, atol=1e-13)
        for name, parameter in model.named_parameters():
            expected = models[0].get_parameter(name).grad
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-13, msg=name)


# The program


def test_learns_made_up_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--limit", "4000", "--epochs", "5", "--learning-rate", "0.003")
    assert results.data == "made-up sentences"
    assert results.accuracies[0] > 95
    assert results.bag_of_words < 65  # of 400, guessing gives 50 with a deviation of 2.5
    assert results.packed_difference < 1e-4  # scores of up to about 10, in float32
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "no folder $FASTRNN_DATA/rt_polarity or data/rt_polarity: taking made-up sentences instead"
    )
    summary = r"sentiment: test accuracy \d+\.\d\d %, \d+\.\d s, [\d.,]+ steps/s"
    assert re.fullmatch(summary, lines[-1])


def test_keeps_the_best_epoch() -> None:
    """The validation accuracy of the weights that are kept is the best of all epochs."""
    results = example(*SMALL, "--epochs", "5", "--learning-rate", "0.03")
    (run,) = results.runs
    sentences = reviews_data.made_up_sentences(8000)
    learn, choose, _ = sentiment.split(sentences, 600)
    numbers = sentiment.number_words(learn)
    data = sentiment.to_tensors(choose, numbers, torch.device("cpu"))
    kept = sentiment.accuracy(sentiment.predict(run.model, data), data)
    assert len(run.model.validation) == 5
    assert kept == max(run.model.validation)
    assert min(run.model.validation) < max(run.model.validation)  # else this test could not fail


def test_packed_and_lengths_train_alike() -> None:
    """Losses below 1 carry roundings of 6e-8; some 34 steps may let them grow a hundredfold."""
    padded, packed = (
        example(*SMALL, "--sequences", way).runs[0].step_losses for way in ("lengths", "packed")
    )
    assert len(padded) == 2 * 16
    assert packed == pytest.approx(padded, abs=1e-5)


def test_compare_trains_both_alike(capsys: pytest.CaptureFixture[str]) -> None:
    """The bound of the test above."""
    results = example(*SMALL, "--compare")
    assert results.comparison.step_difference <= 1e-5
    assert results.comparison.epoch_difference <= 1e-5
    assert len(results.accuracies) == 2
    out = capsys.readouterr().out
    assert "training amplifies rounding errors" in out
    assert f"torch.nn.RNN: test accuracy {results.accuracies[1]:.2f} %" in out


def test_impl_torch() -> None:
    results = example(*SMALL, "--impl", "torch")
    assert type(results.runs[0].model.rnn) is torch.nn.RNN
    assert results.packed_difference is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_learns_film_reviews(reviews: str, seed: str) -> None:
    results = example("--data", reviews, "--seed", seed)
    assert results.data == "film reviews"
    assert results.accuracies[0] >= 72
    assert 70 < results.bag_of_words < 80
    assert results.packed_difference < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compare_on_cuda() -> None:
    results = sentiment.main(["--device", "cuda", *SMALL, "--compare"])
    assert results.comparison.step_difference <= 1e-4


# What it refuses


def write_reviews(folder: Path, negative: str, positive: str) -> None:
    folder.mkdir()
    (folder / "rt-polarity.neg").write_text(negative, encoding="latin-1")
    (folder / "rt-polarity.pos").write_text(positive, encoding="latin-1")


def test_reads_latin_1(tmp_path: Path) -> None:
    write_reviews(tmp_path / "rt_polarity", "Déjà  vu .\n\ndull\n", "très bon\n")
    args = sentiment.parse_options(["--data", str(tmp_path)])
    name, sentences = sentiment.load_sentences(args)
    assert name == "film reviews"
    assert sentences.words == [["déjà", "vu", "."], ["dull"], ["très", "bon"]]
    assert sentences.labels == [0, 0, 1]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("missing", "rt-polarity.pos: No such file"),
        ("empty", "rt-polarity.pos: expected a sentence a line, got an empty file"),
        ("few", "expected at least 11 sentences, got 10"),
    ],
)
def test_bad_data(
    broken: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reviews(
        tmp_path / "rt_polarity", "bad\n" * 5, "\n \n" if broken == "empty" else "ok\n" * 5
    )
    if broken == "missing":
        (tmp_path / "rt_polarity" / "rt-polarity.pos").unlink()
    assert message in refused(["--data", "rt_polarity"], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit", "10"], "expected at least 11 sentences, got 10"),
        (["--dropout", "1"], "--dropout: expected a number from 0 to below 1, got 1"),
        (["--dropout", "nan"], "--dropout: expected a number from 0 to below 1, got nan"),
        (["--sequences", "padded"], "--sequences: invalid choice"),
        (["--hidden-size", "many"], "--hidden-size: expected a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)
