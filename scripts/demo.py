"""The page: `python scripts/demo.py checkpoint=runs/full_finetune`, then http://127.0.0.1:7860."""

from medsam3.demo.page import main

if __name__ == "__main__":
    main()
