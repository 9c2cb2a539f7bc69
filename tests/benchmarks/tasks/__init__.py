"""How well a model does each task, on held-out molecules: `python -m tests.benchmarks.tasks`."""
