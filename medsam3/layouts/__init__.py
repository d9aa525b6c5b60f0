"""Layouts of files, one reader each, and what they share: patterns, pairing, decoding of masks and volumes."""
