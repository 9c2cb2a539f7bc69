"""The card of a model: how it was trained and how its molecules fare, measured by `python -m tests.benchmarks.card`."""
