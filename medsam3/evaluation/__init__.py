"""Predictions against truth: metrics, tables, pictures."""
