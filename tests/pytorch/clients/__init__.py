# In the table's order.
from clients import training, counters, converters, large, reinforcement  # isort: skip

__all__ = ["converters", "counters", "large", "reinforcement", "training"]
