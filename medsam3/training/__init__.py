"""The loop and what drives it: matching, loss, optimizer, resuming, records."""
