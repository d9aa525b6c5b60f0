"""Checkpoint files: layouts, the names of tensors, safe reading, accounts of what was loaded, the model card."""
