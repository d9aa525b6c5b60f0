"""What an evaluation asked and found: rows, means, comparisons."""
