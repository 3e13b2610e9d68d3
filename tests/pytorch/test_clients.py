"""Tools that take a module, as the table in docs/pytorch.md says; `make test-clients` has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clients import harness, reinforcement
from clients.harness import (
    AS_IT_IS,
    IN_AS_TORCH,
    NEITHER,
    NOT,
    TOOLS,
    Classifier,
    H,
    Tool,
    sequences,
)
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastrnn import RNN

# Theirs, of one another.
pytestmark = pytest.mark.filterwarnings("ignore")


def is_installed(package: str, wanted: str) -> bool:
    try:
        return Version(version(package)) == Version(wanted)
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: f"{tool.package}: {tool.what}")
def test_it_is_taken_as_the_table_says(tool: Tool) -> None:
    wanted = harness.versions()[tool.package]
    if not is_installed(tool.package, wanted):
        pytest.skip(f"{tool.package} {wanted} is not installed")
    how, seen = harness.how(tool)
    assert how == tool.how, seen


def test_the_document_has_the_table() -> None:
    document = harness.DOCUMENT.read_text(encoding="utf-8")
    assert harness.table() in document, "cd tests/pytorch && python -m clients   writes it"


calls = itertools.count()


@pytest.mark.parametrize(
    ("run", "how"),
    [
        (lambda model: model(torch.ones(1, 2, 3)), AS_IT_IS),
        (lambda model: type(model.rnn) is nn.RNN, IN_AS_TORCH),
        (lambda model: next(calls), NOT),
        (lambda model: model.nothing, NEITHER),
    ],
)
def test_how_is_found(run: Callable[[Any], Any], how: str) -> None:
    assert harness.how(Tool("", "", run, ""))[0] == how


# What else is asked of some.


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(precision: Any, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Lesson(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Classifier()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x, y = batch
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("accuracy", accuracy(self.model, *batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    lesson = Lesson()
    trainer = lightning.Trainer(
        max_epochs=16,
        accelerator="cpu",
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=True,
        default_root_dir=tmp_path,
    )
    train, test = (DataLoader(TensorDataset(*sequences(n)), 32) for n in (512, 256))
    trainer.fit(lesson, train, test)
    assert trainer.callback_metrics["accuracy"] > 0.9
    assert {w.dtype for w in lesson.parameters()} == {torch.float32}
    # What it saved, loaded: same weights, same scores.
    path = trainer.checkpoint_callback.best_model_path
    loaded = Lesson.load_from_checkpoint(path, weights_only=True)
    x, _ = sequences(4)
    torch.testing.assert_close(loaded.model(x), lesson.model(x), rtol=0, atol=0)


def test_skorch(tmp_path: Path) -> None:
    skorch = pytest.importorskip("skorch")
    model_selection = pytest.importorskip("sklearn.model_selection")
    x, y = (data.numpy() for data in sequences(512))
    net = skorch.NeuralNetClassifier(
        Classifier,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=8,
        batch_size=32,
        verbose=0,
    )
    search = model_selection.GridSearchCV(
        net, {"module__rnn_class": [RNN, nn.RNN]}, cv=2, scoring="accuracy"
    )
    search.fit(x, y)
    ours, theirs = search.cv_results_["mean_test_score"]
    assert min(ours, theirs) > 0.9
    best = search.best_estimator_
    best.save_params(f_params=tmp_path / "weights.pt")
    fresh = skorch.NeuralNetClassifier(Classifier, criterion=nn.CrossEntropyLoss).initialize()
    fresh.load_params(f_params=tmp_path / "weights.pt")
    np.testing.assert_allclose(fresh.predict_proba(x), best.predict_proba(x), atol=1e-5)


def test_torchao() -> None:
    """It converts linear layers, leaves ours alone, and its tensors as our weights raise."""
    quantization = pytest.importorskip("torchao.quantization")
    model, (x, _) = Classifier(), sequences(5)
    before = model.rnn(x)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.linear.weight) is not nn.Parameter
    assert all(type(w) is nn.Parameter for w in model.rnn.parameters())
    torch.testing.assert_close(model.rnn(x), before, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="requires module to have"):
        quantization.quantize_(
            model, quantization.Int8WeightOnlyConfig(), lambda m, _: isinstance(m, RNN)
        )
    square = nn.Sequential(nn.Linear(H, H))
    quantization.quantize_(square, quantization.Int8WeightOnlyConfig())
    del model.rnn.weight_hh_l0
    model.rnn.weight_hh_l0 = square[0].weight
    with pytest.raises(NotImplementedError, match="unimplemented operator"):
        model.rnn(x)
    del model.rnn.weight_hh_l0
    model.rnn.weight_hh_l0 = square[0].weight.dequantize()
    assert model.rnn(x)[0].isfinite().all()


def test_torchrl() -> None:
    """A pass over a rollout, or over its end, has the outputs that the rollout had."""
    pytest.importorskip("torchrl")
    torch.manual_seed(0)
    model = Classifier()
    seen = reinforcement.rollout(model)
    for steps in (seen, seen[:, 5:]):
        assert steps["is_init"][:, 1:].any()
        torch.testing.assert_close(reinforcement.outputs_over(model, steps), steps["output"])
    seen["is_init"].zero_()
    assert not torch.allclose(reinforcement.outputs_over(model, seen), seen["output"], atol=1e-3)
