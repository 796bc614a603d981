"""`python -m trainer`: the same as `hlip-train`, for torchrun."""

from trainer.cli import main

if __name__ == "__main__":
    main()
