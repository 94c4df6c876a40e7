"""`python -m gentletune` is `gentletune`; so are `torchrun -m gentletune` and `accelerate launch -m gentletune`."""

from gentletune.cli import main

if __name__ == "__main__":
    main()
