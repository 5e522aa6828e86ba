"""Problems rescaled: in their parameters, or in their loss."""

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import draws
from l2l_tf.problems.augmentation import Augmentation


class ScaledParameters(Augmentation):
    """f(θ) = f_inner(c θ), from θ_0 = θ_inner / c: parameters in other units.

    The same function of the same start, whose gradients are c times as large and whose parameters
    ask for updates 1/c as large. So a rule cannot know the size of its updates by heart, and not
    those of one tensor relative to another's. Random scaling of Lv, Jiang and Li 2017, "Learning
    gradient descent: better generalization and longer horizons", and of Metz et al. 2022, "VeLO".

    An episode has scales c by tensor, or one for all tensors, or none: 1. What a batch has of them
    is a tensor ``[S]`` of the S tensors of the layout. Reports show no pictures of images as
    optimizees, since these are in other units.

    Args:
        problem: a ``Problem``; see ``Augmentation``.
        by_tensor: pair ``(low, high)``, above 0, between which each tensor's scale is drawn
            log-uniformly.
        together: pair ``(low, high)``, above 0, of the one scale for all tensors.
        probability_by_tensor, probability_together: of the two, in an episode. The rest has none.

    Raises:
        TypeError, ValueError: an argument is not as above.

    >>> from l2l_tf.problems import Quadratic
    >>> problem = ScaledParameters(Quadratic(), together=(0.1, 10), probability_together=0.5)
    >>> problem.name
    'quadratic~scaled'
    """

    def __init__(
        self,
        problem,
        by_tensor=(0.3, 3.0),
        together=(0.1, 10.0),
        *,
        probability_by_tensor=0.4,
        probability_together=0.2,
    ):
        self._by_tensor = arguments.interval("by_tensor", by_tensor, above=0)
        self._together = arguments.interval("together", together, above=0)
        probabilities = {
            "probability_by_tensor": probability_by_tensor,
            "probability_together": probability_together,
        }
        for name, value in probabilities.items():
            probabilities[name] = arguments.real(name, value, minimum=0, maximum=1)
        self._first, second = probabilities.values()
        self._first_or_second = self._first + second
        if self._first_or_second > 1:
            raise ValueError(
                "`probability_by_tensor` and `probability_together` must be 1 at most, in sum. "
                f"Received: {self._first} and {second}"
            )
        intervals = {"by_tensor": list(self._by_tensor), "together": list(self._together)}
        super().__init__(problem, "scaled", {**intervals, **probabilities})
        self.picture = None

    def draw(self, seed):
        kind = tf.random.stateless_uniform([], draws.fold_in(seed, 0))
        shape = [len(self.layout)]
        by_tensor = draws.log_uniform(draws.fold_in(seed, 1), self._by_tensor, shape)
        together = draws.log_uniform(draws.fold_in(seed, 2), self._together)
        otherwise = tf.where(kind < self._first_or_second, together, 1.0)
        scales = tf.where(kind < self._first, by_tensor, otherwise)
        return tf.cast(scales, self.dtype)

    def change_parameters(self, parameters, drawn):
        return [p / c for p, c in zip(parameters, tf.unstack(drawn))]

    def loss_and_gradients(self, parameters, batch):
        batch, drawn = batch
        scales = tf.unstack(drawn)
        inner = [c * p for p, c in zip(parameters, scales)]
        loss, gradients = self.problem.loss_and_gradients(inner, batch)
        return loss, [c * g for g, c in zip(gradients, scales)]


class ScaledLoss(Augmentation):
    """c f(θ): a loss in other units, and its gradients.

    What a batch has of c is a scalar.

    Args:
        problem: a ``Problem``; see ``Augmentation``.
        scales: pair ``(low, high)``, above 0: c is drawn log-uniformly between, for each episode.
        probability: that an episode is scaled.

    Raises:
        TypeError, ValueError: an argument is not as above.

    >>> from l2l_tf.problems import Quadratic
    >>> ScaledLoss(ScaledParameters(Quadratic()), (0.1, 10.0)).name
    'quadratic~scaled~scaled-loss'
    """

    def __init__(self, problem, scales=(0.01, 100.0), *, probability=1.0):
        self._scales = arguments.interval("scales", scales, above=0)
        self._probability = arguments.real("probability", probability, minimum=0, maximum=1)
        settings = {"scales": list(self._scales), "probability": self._probability}
        super().__init__(problem, "scaled-loss", settings)

    def draw(self, seed):
        scale = draws.log_uniform(draws.fold_in(seed, 0), self._scales)
        is_scaled = draws.happens(draws.fold_in(seed, 1), self._probability)
        return tf.cast(tf.where(is_scaled, scale, 1.0), self.dtype)

    def loss_and_gradients(self, parameters, batch):
        batch, drawn = batch
        loss, gradients = self.problem.loss_and_gradients(parameters, batch)
        return drawn * loss, [drawn * g for g in gradients]
