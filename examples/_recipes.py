"""Options of mnist_rows.py, and a training loop with more than the lesson's.

The recipe `best` starts the recurrence at the identity, so that at first a relu network neither
forgets nor explodes (Le, Jaitly and Hinton 2015), clips gradients (Pascanu et al. 2013), and raises
and lowers the learning rate once (Smith 2018).
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
import torch.nn.functional as F
from _common import make_parser, positive_float, positive_int
from torch import nn
from torch.utils.data import DataLoader

RECIPES = {
    "document": {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "nonlinearity": "tanh",
        "start": "default",
        "clip_norm": math.inf,
        "schedule": "constant",
    },
    "best": {
        "batch_size": 64,
        "learning_rate": 3e-3,
        "nonlinearity": "relu",
        "start": "identity",
        "clip_norm": 1.0,
        "schedule": "one-cycle",
    },
}


def parse_options(doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(doc, epochs=10, data=True)
    add = parser.add_argument
    add("--download", action="store_true", help="fetch the MNIST files that are missing")
    add("--limit", type=positive_int, metavar="N", help="only the first N images of each set")
    add("--hidden-size", type=positive_int, default=64, help="(%(default)s)")
    add("--layers", type=positive_int, default=1, help="(%(default)s)")
    add("--bidirectional", action="store_true", help="also read from the last row to the first")
    add("--amp", choices=("float16", "bfloat16"), help="train and predict in mixed precision")
    add("--recipe", choices=RECIPES, default="document", help="sets the next six (%(default)s)")

    def by_recipe(option: str) -> str:
        values = ", ".join(f"{name}: {recipe[option]}" for name, recipe in RECIPES.items())
        return f"({values})"

    add("--batch-size", type=positive_int, help=by_recipe("batch_size"))
    add("--learning-rate", type=positive_float, help=by_recipe("learning_rate"))
    add("--nonlinearity", choices=("tanh", "relu"), help=by_recipe("nonlinearity"))
    starts = ("default", "orthogonal", "identity")
    add("--start", choices=starts, help=f"w_hh before training {by_recipe('start')}")
    add("--clip-norm", type=positive_float, help=f"of all gradients {by_recipe('clip_norm')}")
    add("--schedule", choices=("constant", "one-cycle"), help=by_recipe("schedule"))

    recipe = parser.parse_known_args(argv)[0].recipe
    parser.set_defaults(**RECIPES[recipe])
    return parser.parse_args(argv)


def is_plain(args: argparse.Namespace) -> bool:
    """Whether the lesson's own training loop does all that `args` ask for."""
    return args.clip_norm == math.inf and args.schedule == "constant" and args.amp is None


def start_weights(rnn: nn.RNN, start: str) -> None:
    """Draw the weights as `--start` says: "default" leaves them as they are."""
    if start == "default":
        return
    for name, weight in rnn.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.eye_(weight) if start == "identity" else nn.init.orthogonal_(weight)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(weight)
        else:
            nn.init.zeros_(weight)


def mixed_precision(args: argparse.Namespace) -> torch.autocast:
    """Within, matrix products are computed in `--amp`; weights and gradients stay in float32."""
    dtype = None if args.amp is None else getattr(torch, args.amp)
    return torch.autocast(args.device.type, dtype, enabled=args.amp is not None)


def train_with_care(model: nn.Module, loader: DataLoader, args: argparse.Namespace) -> list[float]:
    """The lesson's loop with clipped gradients, a schedule of the learning rate, mixed precision.

    Returns the loss of each step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    scheduler = None
    if args.schedule == "one-cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=args.epochs * len(loader)
        )
    # Small gradients would be zero in float16, so the loss is scaled (Micikevicius et al. 2018).
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.amp == "float16")
    losses = []
    for epoch in range(1, args.epochs + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            with mixed_precision(args):
                scores = model(images.to(args.device))
                loss = F.cross_entropy(scores, labels.to(args.device))
            scaler.scale(loss).backward()
            if args.clip_norm < math.inf:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.item())
        mean = statistics.fmean(losses[-len(loader) :])
        print(f"epoch {epoch:2}/{args.epochs}  loss {mean:.4f}")
    return losses
