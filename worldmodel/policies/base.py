"""What the rest of the house may ask of a policy, whatever it is and however it learns."""

from __future__ import annotations

from torch import Tensor, nn


class Policy(nn.Module):
    """Answers "what shall I do?". It sees the features of a world's states, and nothing else of the world.

    A policy with a critic offers `value(features (..., F)) -> (...)`, the expected discounted return in reward units,
    beside `act`; who wants to judge critics asks for it with `hasattr`, and leaves out what has none.
    """

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        """Actions (..., A) at features (..., F): with the noise of training (`sample`), or the best known.

        Continuous actions lie within [-1, 1] but for that noise; discrete ones are one-hot.
        """
        raise NotImplementedError
