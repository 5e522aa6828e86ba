"""Problem: a distribution over optimizees."""

import contextlib

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems.draws import fold_in, seen_again

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

    ``has_heldout`` is False where the "heldout" side has the data of the "train" side, for want of
    others; reports then say so.

    ``acts_between_steps`` lists what else than updates acts on parameters or loss from one step to
    the next (texts). Where there is something, ``loss_and_gradients`` alone is not what training
    does, and the problem also has the methods for training in place: see ``KerasProblem``.

    A problem whose optimizees are images may also define two methods, by which reports show them:
    ``picture(parameters)``, the image of an optimizee, and ``reference_pictures(batch)``, a dict of
    title → image of what it is to be compared with. Images are uint8 arrays [height, width, 3].

    One whose batches have labels may define ``map_labels(function, batch)``: the batch, with its
    labels (a tensor, or a structure of tensors with the batch's axis first) replaced by
    ``function(labels)``.
    """

    name = "problem"
    layout = ()
    dtype = "float32"
    vectorized = False
    settings = {}
    has_heldout = True
    acts_between_steps = ()
    scales_loss = False  # whether Keras would scale the loss, as with mixed_float16
    picture = None
    map_labels = None

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

    # What of an episode is drawn together.

    def episode(self, side, seed, num_batches, *, num_distinct=None, member=()):
        """One episode: what it starts from and its batches, out of one seed.

        Whoever runs episodes draws them here. A problem overrides it if parameters and batches
        depend on one draw, as those of an ``Augmentation`` do.

        Args:
            side, num_batches: as of ``batches``.
            seed: of the episode, an integer tensor ``[2]``.
            num_distinct: None, or an int64 tensor: see ``few_batches``.
            member: index within an ensemble, and so on inwards: each member draws for itself.

        Returns:
            ``(parameters, state, batches)``, of ``sample_parameters``, ``sample_state`` and
            ``batches``.
        """
        start, of_batches = fold_in(seed, 0, *member), fold_in(seed, 1, *member)
        if num_distinct is None:
            batches = self.batches(side, of_batches, num_batches)
        else:
            batches = self.few_batches(side, of_batches, num_batches, num_distinct)
        return self.sample_parameters(start), self.sample_state(start), batches

    def few_batches(self, side, seed, num_batches, num_distinct):
        """As ``batches``, but of the data of `num_distinct` batches alone, an int64 tensor.

        By default these are the first batches that ``batches`` has, again and again in other
        orders. They are kept in memory.
        """
        return seen_again(self.batches(side, seed, num_batches), seed, num_batches, num_distinct)

    # Training in place, by an optimizer that changes Keras variables.

    def variables(self):
        """Keras variables for the parameters, in the layout's order, named as there."""
        return [_variable(name, shape, self.dtype) for name, shape in self.layout]

    def sample_state(self, seed):
        """What else an episode starts from, of `acts_between_steps`: a list of tensors."""
        return []

    def set_state(self, state):
        """Starts an episode from what ``sample_state`` returned."""

    def loss_and_gradients_in_place(self, variables, batch, scale_loss):
        """As of ``loss_and_gradients``, at the values of ``variables()``, which it may change.

        The gradients are those of ``scale_loss(loss)``, a Keras optimizer's.
        """
        loss, gradients = self.loss_and_gradients([v.value for v in variables], batch)
        scale = scale_loss(tf.ones([], loss.dtype))
        return loss, [tf.cast(scale, g.dtype) * g for g in gradients]


def check_problem(problem):
    """Refuses what is no problem, or one whose methods do not do what ``Problem`` says.

    Computes the loss of one batch, once for each problem.

    Raises:
        TypeError: it is no ``Problem``.
        ValueError: its methods do not fit its layout and dtype.
    """
    hint = (
        "l2l_tf.problems.get('mnist') gives one by its name, l2l_tf.problems.KerasProblem(...) "
        "makes one of a Keras model."
    )
    arguments.instance("problem", problem, Problem, "a Problem", hint)
    if getattr(problem, "_is_checked", False):
        return
    seed = tf.constant([0, 0], tf.int64)
    parameters = problem.sample_parameters(seed)
    expected = [(tuple(shape), problem.dtype) for _, shape in problem.layout]
    _check_tensors(problem, "sample_parameters", parameters, expected)
    batch = next(iter(problem.batches("train", seed, 1)))
    loss, gradients = problem.loss_and_gradients(parameters, batch)
    _check_tensors(problem, "loss_and_gradients, of the loss,", [loss], [((), problem.dtype)])
    _check_tensors(problem, "loss_and_gradients, of the gradients,", gradients, expected)
    problem._is_checked = True


def _check_tensors(problem, method, received, expected):
    received = [(tuple(t.shape), tf.as_dtype(t.dtype).name) for t in received]
    if received != expected:
        raise ValueError(
            f"Problem '{problem.name}': expected of {method} tensors of the shapes and dtypes that "
            f"its `layout` and `dtype` say: {expected}. Received: {received}"
        )


def check_updates_alone(problem, what):
    """Refuses a problem on which more than updates acts; `what` must not be such a one."""
    if problem.acts_between_steps:
        raise ValueError(
            f"{what} must change by updates alone. Received "
            f"'{problem.name}', on which {'; '.join(problem.acts_between_steps)} act from "
            "step to step too. Evaluate on it by itself."
        )


def _variable(path, shape, dtype):
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(tf.zeros(shape, dtype), dtype=dtype, name=name, trainable=True)


def check_side(side):
    if side not in SIDES:
        raise ValueError(f"`side` must be one of {SIDES}. Received: side={side!r}")
    return SIDES.index(side)
