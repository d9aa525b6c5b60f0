"""From an image and words to masks and scores."""
