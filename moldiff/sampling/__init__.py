"""From a model to checked molecules."""
