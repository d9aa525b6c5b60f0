"""Measurements of the training input and of a training step, with the classes that a run uses."""
