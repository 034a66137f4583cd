"""``python -m mmvae_fast``."""

from mmvae_fast.cli import main

if __name__ == "__main__":
    main()
