from clients import training, counters, converters, large  # isort: skip  (the table's order)

__all__ = ["converters", "counters", "large", "training"]
