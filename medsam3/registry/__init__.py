"""What the data sets are, without a pixel: descriptions, cards, vocabulary."""
