"""Problem: a distribution over optimizees."""

import tensorflow as tf

SIDES = ("train", "heldout")


class Problem:
    """What is optimized: parameters to start from, batches, and a loss with its gradients.

    A subclass sets ``name`` and ``layout`` (the list of ``(name, shape)`` of its parameters) and
    implements the three methods below. All are functions of their arguments alone: the same seed
    gives the same values, in any order and after any interruption. A seed is an integer tensor
    ``[2]``, as for ``tf.random.stateless_uniform``.

    ``vectorized`` may be set if ``loss_and_gradients`` is made of plain TensorFlow operations that
    ``tf.vectorized_map`` can batch, which then runs many optimizees as one.

    ``settings`` may say what else than the name determines the problem: a dict of JSON values,
    without paths, for the cards of meta-trainings.

    A problem whose optimizees are images may also define two methods, by which reports show them:
    ``picture(parameters)``, the image of an optimizee, and ``reference_pictures(batch)``, a dict of
    title → image of what it is to be compared with. Images are uint8 arrays [height, width, 3].
    """

    name = "problem"
    layout = ()
    dtype = "float32"
    vectorized = False
    settings = {}
    picture = None

    def sample_parameters(self, seed):
        """Fresh initial parameters θ_0: a list of tensors, in the layout's order."""
        raise NotImplementedError

    def batches(self, side, seed, num_batches):
        """The batches of one episode.

        Args:
            side: "train" for meta-training, "heldout" for reports.
            seed: integer tensor ``[2]``.
            num_batches: int.

        Returns:
            A ``tf.data.Dataset`` of `num_batches` elements, each a batch in any structure.
        """
        raise NotImplementedError

    def loss_and_gradients(self, parameters, batch):
        """The loss f(θ) of a batch, a scalar, and ∇f(θ): a list like `parameters`."""
        raise NotImplementedError


def fold_in(seed, *data):
    """A new seed for each integer in `data`: independent streams out of one seed."""
    for value in data:
        # What is drawn depends on the integer's dtype: always the same one.
        seed = tf.random.experimental.stateless_fold_in(
            seed, tf.cast(value, tf.int64), alg="philox"
        )
    return seed


def check_side(side):
    if side not in SIDES:
        raise ValueError(f"`side` must be one of {SIDES}. Received: side={side!r}")
    return SIDES.index(side)
