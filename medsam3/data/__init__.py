"""From files on disk to batches of (image, concept, masks)."""
