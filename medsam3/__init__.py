"""Fine-tune Meta's SAM3 on medical images with text prompts (Medical SAM3)."""

__version__ = "0.1.0"
