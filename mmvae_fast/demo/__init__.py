"""The main job of ``mmvae-fast demo``: see :mod:`mmvae_fast.demo.run`. Importing this package imports nothing else."""
