"""Numbers of masks, instances and scores: what is measured, and how sure it is."""
