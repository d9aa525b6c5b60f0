"""SAM3 as training, evaluation and prediction run it."""
