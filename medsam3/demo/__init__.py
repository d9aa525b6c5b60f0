"""A page in the browser: an image or volume and words in, masks out; scripts/demo.py."""
