"""Libraries that take a module as it is; `make test-clients` installs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastrnn import RNN

# Theirs, of one another.
pytestmark = pytest.mark.filterwarnings("default")

T, I, H = 8, 3, 32  # noqa: E741  (seq_len, input_size, hidden_size)


class Classifier(nn.Module):
    """Whether the first feature of a sequence sums to more than zero: scores (B, 2)."""

    def __init__(self, rnn_class: type[nn.RNNBase] = RNN) -> None:
        super().__init__()
        self.rnn = rnn_class(I, H, batch_first=True)
        self.linear = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, hn = self.rnn(x)
        return self.linear(output.mean(1) + hn[-1])


def sequences(count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, T, I)
    return x, (x[..., 0].sum(1) > 0).long()


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
        max_epochs=8,
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


@pytest.mark.parametrize(
    "method",
    ["IntegratedGradients", "Saliency", "DeepLift", "GradientShap", "FeatureAblation"],
)
def test_captum(method: str) -> None:
    attr = pytest.importorskip("captum.attr")
    ours = Classifier()
    theirs = Classifier(nn.RNN)
    theirs.load_state_dict(ours.state_dict())
    x, _ = sequences(5)
    options = {"baselines": torch.zeros_like(x)} if method in ("DeepLift", "GradientShap") else {}
    attributions = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  (Captum draws from it)
        attributions.append(getattr(attr, method)(model).attribute(x, target=1, **options))
    torch.testing.assert_close(*attributions, rtol=1e-4, atol=1e-5)
    assert attributions[0].abs().sum() > 0


def test_captum_of_a_layer() -> None:
    attr = pytest.importorskip("captum.attr")
    ours, theirs = Classifier(), Classifier(nn.RNN)
    theirs.load_state_dict(ours.state_dict())
    x, _ = sequences(5)
    inputs = [
        attr.LayerIntegratedGradients(model, model.rnn).attribute(
            x, target=1, n_steps=8, attribute_to_layer_input=True
        )
        for model in (ours, theirs)
    ]
    torch.testing.assert_close(*inputs, rtol=1e-4, atol=1e-5)
    assert inputs[0].abs().sum() > 0


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
    with pytest.raises(NotImplementedError, match=r"unimplemented operator.*fastrnn"):
        model.rnn(x)
    del model.rnn.weight_hh_l0
    model.rnn.weight_hh_l0 = square[0].weight.dequantize()
    assert model.rnn(x)[0].isfinite().all()
