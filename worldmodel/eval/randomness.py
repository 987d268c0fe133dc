"""`worldmodel.randomness` under its older name."""

from worldmodel.randomness import RowNoise, generator, local_randomness, seed_everything

__all__ = ["RowNoise", "generator", "local_randomness", "seed_everything"]
