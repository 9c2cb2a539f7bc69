"""Properties of molecules as a network predicts them: the judge of what was drawn towards property values."""

from moldiff.predictor.network import PropertyNetwork
from moldiff.predictor.predictor import PropertyPredictor, available_predictors, load_predictor, predictor_for

__all__ = ["PropertyNetwork", "PropertyPredictor", "available_predictors", "load_predictor", "predictor_for"]
