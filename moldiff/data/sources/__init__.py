"""Where molecules to train on come from."""
