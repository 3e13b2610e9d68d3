"""The options of translation.py, whose defaults depend on the task."""

from __future__ import annotations

import argparse

from _common import make_parser, positive_float, positive_int

# `hidden_size` is the decoder's; each direction of the encoder has half of it.
DEFAULTS = {
    "dates": {
        "epochs": 12,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "embedding_size": 64,
        "hidden_size": 256,
        "dropout": 0.0,
    },
    "Multi30k": {
        "epochs": 7,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "embedding_size": 256,
        "hidden_size": 512,
        "dropout": 0.3,
    },
}


def parse_options(doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(doc, data=True)
    add = parser.add_argument
    add("--dates", action="store_true", help="learn dates, even where Multi30k is there")
    add("--limit", type=positive_int, metavar="N", help="only the first N pairs of each part")
    add("--beam", type=positive_int, default=5, help="sentences kept at each step (%(default)s)")

    def by_task(option: str) -> str:
        return ", ".join(f"{name}: {values[option]}" for name, values in DEFAULTS.items())

    for option, kind in (
        ("epochs", positive_int),
        ("batch_size", positive_int),
        ("learning_rate", positive_float),
        ("embedding_size", positive_int),
        ("hidden_size", positive_int),
        ("dropout", fraction),
    ):
        add(f"--{option.replace('_', '-')}", type=kind, help=f"({by_task(option)})")
    args = parser.parse_args(argv)
    if args.hidden_size is not None and args.hidden_size % 2:
        parser.error(f"argument --hidden-size: expected an even number, got {args.hidden_size}")
    return args


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return value
