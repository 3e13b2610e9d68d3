"""Frameworks that train a model, change its weights, explain or store it."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clients.harness import IN_AS_TORCH, NEITHER, Classifier, batches, gradients, sequences, tool


@tool("lightning", "weights after two epochs")
def lightning(model: Classifier) -> Any:
    import lightning

    class Lesson(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Lesson(), batches())
    return model.state_dict()


@tool("skorch", "probabilities after two epochs")
def skorch(model: Classifier) -> Any:
    import skorch

    net = skorch.NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        lr=0.1,
        max_epochs=2,
        batch_size=16,
        train_split=None,
        verbose=0,
    )
    x, y = (data.numpy() for data in sequences(64))
    return net.fit(x, y).predict_proba(x)


@tool("accelerate", "weights after an epoch")
def accelerate(model: Classifier) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.1), batches()
    )
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    return accelerator.unwrap_model(model).state_dict()


@tool("pytorch-ignite", "weights after an epoch")
def ignite(model: Classifier) -> Any:
    from ignite.engine import create_supervised_trainer

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    create_supervised_trainer(model, optimizer, nn.functional.cross_entropy).run(batches())
    return model.state_dict()


@tool("captum", "attributions by five methods")
def captum(model: Classifier) -> Any:
    from captum import attr

    x, _ = sequences(5)
    baselines = {"baselines": torch.zeros_like(x)}
    return {
        method.__name__: method(model).attribute(x, target=1, **options)
        for method, options in (
            (attr.IntegratedGradients, {}),
            (attr.Saliency, {}),
            (attr.DeepLift, baselines),
            (attr.GradientShap, baselines),
            (attr.FeatureAblation, {}),
        )
    }


@tool("captum", "attributions to the RNN's input")
def captum_of_a_layer(model: Classifier) -> Any:
    from captum import attr

    return attr.LayerIntegratedGradients(model, model.rnn).attribute(
        sequences(5)[0], target=1, n_steps=8, attribute_to_layer_input=True
    )


@tool("peft", "scores and gradients: LoRA on the linear layer, the RNN trained whole")
def peft(model: Classifier) -> Any:
    import peft

    config = peft.LoraConfig(
        r=4, target_modules=["linear"], modules_to_save=["rnn"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config)
    scores = adapted(sequences(5)[0])
    scores.square().sum().backward()
    return scores, gradients(adapted)


@tool("torchao", "scores with the linear layer in int8")
def torchao(model: Classifier) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model(sequences(5)[0])


def gradients_of_samples(model: Classifier, wrapped: nn.Module) -> Any:
    x, y = sequences(5)
    nn.functional.cross_entropy(wrapped(x), y).backward()
    return {name: w.grad_sample for name, w in model.named_parameters()}


@tool("opacus", "per-sample gradients, by hooks", NEITHER)
def opacus_hooks(model: Classifier) -> Any:
    from opacus.grad_sample import GradSampleModule

    return gradients_of_samples(model, GradSampleModule(model))


@tool("opacus", 'per-sample gradients, `grad_sample_mode="ew"`')
def opacus_expanded_weights(model: Classifier) -> Any:
    from opacus.grad_sample import GradSampleModuleExpandedWeights

    return gradients_of_samples(model, GradSampleModuleExpandedWeights(model))


@tool("backpack-for-pytorch", "per-sample gradients", IN_AS_TORCH)
def backpack(model: Classifier) -> Any:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    rnn, linear = extend(model.rnn), extend(model.linear)
    x, y = sequences(5)
    with backpack(BatchGrad()):
        nn.functional.cross_entropy(linear(rnn(x)[0].mean(1)), y).backward()
    return {name: w.grad_batch for name, w in model.named_parameters()}


@tool("safetensors", "scores of the loaded model")
def safetensors(model: Classifier) -> Any:
    from safetensors.torch import load_model, save_model

    loaded = Classifier(type(model.rnn))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model.safetensors")
        load_model(loaded, Path(folder) / "model.safetensors")
    return loaded(sequences(5)[0])


@tool("joblib", "scores of the loaded model")
def joblib(model: Classifier) -> Any:
    import joblib

    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)(sequences(5)[0])
