"""Picture and volume files: read with their geometry, written with it."""
