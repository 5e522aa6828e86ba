"""MetaTrainer: meta-training as a Keras model that is compiled and fit."""

import keras
import tensorflow as tf

from l2l_tf.meta_training import meta_gradient as meta_gradient_lib
from l2l_tf.meta_training import parts as parts_lib
from l2l_tf.meta_training import unroll as unroll_lib
from l2l_tf.meta_training.callbacks import InnerStepsPerSecond, RaiseAtDivergence
from l2l_tf.meta_training.episodes import episodes
from l2l_tf.meta_training.objectives import OBJECTIVES, loss_weights, mean_objective
from l2l_tf.update_rules import base

CREDITS = ("segment", "episode")


class MetaTrainer(keras.Model):
    """Trains an update rule's meta-parameters φ by gradient descent on what the rule achieves.

    Each episode trains a fresh optimizee for `num_steps` steps. The meta-gradient is truncated:
    backpropagation through the rule's state stops every `unroll_length` steps. (Algorithm of
    section 2 of the 2016 paper; to first order, by the identity in ``meta_gradient``.)

    Args:
        rule: the ``UpdateRule`` to train, in place.
        problem: the ``Problem`` to train it on.
        unroll_length: steps of a segment.
        num_steps: steps of an episode, a multiple of `unroll_length`.
        meta_batch_size: optimizees side by side, for one meta-gradient.
        credit: which later losses an update answers for: "segment" sums them to the segment's
            end, for one meta-update a segment, as the paper does; "episode" sums them to the
            episode's end, for one meta-update an episode.
        objective: the sum of losses ("sum", the paper's), of their square roots ("sqrt") or
            logarithms ("log"), the "last" loss, or a function of an optimizee's losses
            f(θ_1) … f(θ_T) ``[T]`` to a scalar.
        backward_fraction: the share of coordinates, drawn at random for each meta-gradient, that
            are backpropagated: an unbiased estimate at a fraction of the cost. In (0, 1]. Coupled
            coordinates are always all backpropagated.
        second_derivatives: the exact meta-gradient, through the optimizee's gradients too.
        chunk_size: see ``meta_gradient``.

    Metrics: ``loss``, the mean of f(θ_1) … f(θ_T); on validation also ``final_loss``, the mean of
    the last five. Training stops with a ``FloatingPointError`` if a loss is not finite.

    Example:

    >>> import l2l_tf
    >>> rule = l2l_tf.update_rules.CoordinatewiseLSTM(layers=(4,), seed=0)
    >>> trainer = MetaTrainer(rule, l2l_tf.problems.get("quadratic"), num_steps=40)
    >>> trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    >>> history = trainer.fit(trainer.dataset(seed=0, num_episodes=2), verbose=0)
    """

    def __init__(
        self,
        rule,
        problem,
        unroll_length=20,
        num_steps=100,
        *,
        meta_batch_size=1,
        credit="segment",
        objective="sqrt",
        backward_fraction=1.0,
        second_derivatives=False,
        chunk_size=None,
    ):
        super().__init__(name="meta_trainer")
        if not isinstance(rule, base.UpdateRule):
            raise TypeError(f"`rule` must be an UpdateRule. Received: {rule!r}")
        if not rule.trainable_variables:
            raise ValueError(
                f"{type(rule).__name__} has no trainable weights to meta-train. Expected a learned "
                "rule, such as l2l_tf.update_rules.CoordinatewiseLSTM()."
            )
        if rule.dtype != problem.dtype:
            raise ValueError(
                f"The rule and the problem must have one dtype. Received: {rule.dtype} and "
                f"{problem.dtype}"
            )
        if unroll_length < 1 or num_steps < 1 or num_steps % unroll_length:
            raise ValueError(
                "`num_steps` must be a positive multiple of `unroll_length`. "
                f"Received: num_steps={num_steps}, unroll_length={unroll_length}"
            )
        if meta_batch_size < 1:
            raise ValueError(
                f"`meta_batch_size` must be positive. Received: meta_batch_size={meta_batch_size}"
            )
        if credit not in CREDITS:
            raise ValueError(f"`credit` must be one of {CREDITS}. Received: credit={credit!r}")
        if not 0.0 < backward_fraction <= 1.0:
            raise ValueError(
                "`backward_fraction` must be above 0 and at most 1. "
                f"Received: backward_fraction={backward_fraction}"
            )
        can_draw = parts_lib.has_coordinatewise_part(rule, problem.layout)
        if backward_fraction < 1.0 and (not can_draw or second_derivatives):
            raise ValueError(
                "`backward_fraction` below 1 needs a rule with coupling 'coordinate', or one for "
                "some of the variables, and the first-order meta-gradient. Received: "
                f"coupling={rule.coupling!r}, second_derivatives={second_derivatives}"
            )
        if not callable(objective) and objective not in OBJECTIVES:
            raise ValueError(
                f"`objective` must be one of {sorted(OBJECTIVES)} or a function of losses [T]. "
                f"Received: objective={objective!r}"
            )
        self.rule = rule
        self.problem = problem
        self.unroll_length = unroll_length
        self.num_steps = num_steps
        self.meta_batch_size = meta_batch_size
        self.objective = objective if callable(objective) else OBJECTIVES[objective]
        self.backward_fraction = backward_fraction
        self.second_derivatives = second_derivatives
        self.chunk_size = chunk_size
        # A window is what one train step sees: the steps over which credit is given.
        self.window_length = num_steps if credit == "episode" else unroll_length
        self.num_windows = num_steps // self.window_length

        # Episodes trained on so far; datasets go on from here, epoch after epoch.
        self.episode = tf.Variable(0, dtype=tf.int64, trainable=False, name="episode")
        # (episode, step) of the first loss that was not finite; (-1, -1) if none was.
        self.divergence = tf.Variable([-1, -1], dtype=tf.int64, trainable=False)
        self._carry = self._make_carry() if self.num_windows > 1 else None
        self._mean_loss = keras.metrics.Mean(name="loss")
        self._mean_final_loss = keras.metrics.Mean(name="final_loss")
        self.built = True

    def dataset(self, seed=0, num_episodes=100):
        """What ``fit`` trains on: an epoch of `num_episodes` episodes.

        The first epoch starts with episode 0, each later one (also after a restored checkpoint)
        with the episode that follows; episode by episode, its data depend on `seed` alone.

        Args:
            seed: int.
            num_episodes: optimizees an epoch, a multiple of `meta_batch_size`.
        """
        if num_episodes < 1 or num_episodes % self.meta_batch_size:
            raise ValueError(
                "`num_episodes` must be a positive multiple of `meta_batch_size`. Received: "
                f"num_episodes={num_episodes}, meta_batch_size={self.meta_batch_size}"
            )
        return episodes(
            self.problem,
            "train",
            seed,
            "meta_train",
            self.episode.read_value,
            num_episodes,
            num_windows=self.num_windows,
            window_length=self.window_length,
            num_parallel=self.meta_batch_size,
        )

    def validation_dataset(self, seed=0, num_episodes=8):
        """Whole episodes that meta-training never sees, the same at each validation.

        They use the problem's "train" side, with other initial parameters and other orders of
        batches: the "heldout" side is kept for reports.
        """
        return episodes(
            self.problem,
            "train",
            seed,
            "validate",
            lambda: tf.constant(0, tf.int64),
            num_episodes,
            num_windows=1,
            window_length=self.num_steps,
            num_parallel=num_episodes if self.problem.vectorized else 1,
        ).cache()

    def fit(self, dataset, *, callbacks=None, **kwargs):
        """``keras.Model.fit`` on ``dataset(...)``, stopped by a loss that is not finite."""
        callbacks = [RaiseAtDivergence(), InnerStepsPerSecond(), *(callbacks or [])]
        return super().fit(dataset, callbacks=callbacks, shuffle=False, **kwargs)

    def train_step(self, data):
        parameters, state = self._start_or_continue(data)
        trajectory, gradients = self._trajectory_and_gradients(parameters, state, data)
        if not self.optimizer.built:
            with tf.init_scope():
                self.optimizer.build(self.rule.trainable_variables)
        is_finite = self._record_divergence(data, trajectory.losses, gradients)
        tf.cond(is_finite, lambda: self._apply(gradients), lambda: tf.constant(False))
        if self._carry is not None:
            values = tf.nest.flatten((trajectory.parameters, trajectory.state))
            for variable, value in zip(self._carry, values):
                variable.assign(value)
        is_last = data["window"][0] == self.num_windows - 1
        self.episode.assign_add(tf.where(is_last, tf.cast(self.meta_batch_size, tf.int64), 0))
        self._mean_loss.update_state(trajectory.losses[1:])
        return {"loss": self._mean_loss.result()}

    def test_step(self, data):
        parameters = data["parameters"]
        trajectory = unroll_lib.unroll(
            self.rule,
            self.problem,
            parameters,
            unroll_lib.initial_state(self.rule, self.problem.layout, parameters.shape[0]),
            data["batches"],
            num_steps=self.num_steps,
            record=False,
        )
        self._mean_loss.update_state(trajectory.losses[1:])
        self._mean_final_loss.update_state(trajectory.losses[-5:])
        return {"loss": self._mean_loss.result(), "final_loss": self._mean_final_loss.result()}

    def _trajectory_and_gradients(self, parameters, state, data):
        def unroll(**options):
            return unroll_lib.unroll(
                self.rule,
                self.problem,
                parameters,
                state,
                data["batches"],
                num_steps=self.window_length,
                segment_length=self.unroll_length,
                **options,
            )

        if self.second_derivatives:
            with tf.GradientTape() as tape:
                trajectory = unroll(record=False, second_derivatives=True)
                value = mean_objective(self.objective, trajectory.losses)
            sources = [v.value for v in self.rule.trainable_variables]
            return trajectory, tape.gradient(value, sources, unconnected_gradients="zero")

        trajectory = unroll()
        weights = loss_weights(self.objective, trajectory.losses)
        return trajectory, meta_gradient_lib.meta_gradient(
            self.rule,
            self.problem.layout,
            trajectory,
            weights,
            backward_fraction=self.backward_fraction,
            seed=tf.stack([data["episode"][0], data["window"][0]]),
            chunk_size=self.chunk_size,
        )

    def _apply(self, gradients):
        self.optimizer.apply_gradients(zip(gradients, self.rule.trainable_variables))
        return tf.constant(True)

    def _make_carry(self):
        """Variables for θ and the rule's state between the windows of an episode."""
        parameters = tf.zeros(
            [self.meta_batch_size, base.num_coordinates(self.problem.layout)], self.problem.dtype
        )
        values = tf.nest.flatten((parameters, self._initial_state()))
        return [tf.Variable(value, trainable=False) for value in values]

    def _initial_state(self):
        return unroll_lib.initial_state(self.rule, self.problem.layout, self.meta_batch_size)

    def _start_or_continue(self, data):
        def start():
            return data["parameters"], self._initial_state()

        def go_on():
            values = [variable.read_value() for variable in self._carry]
            return tf.nest.pack_sequence_as(start(), values)

        return start() if self._carry is None else tf.cond(data["window"][0] == 0, start, go_on)

    def _record_divergence(self, data, losses, gradients):
        """Notes where the first non-finite loss was; returns whether all is finite."""
        is_bad = tf.reshape(~tf.math.is_finite(losses), [-1])  # [(T + 1) * M], step by step
        first = tf.argmax(is_bad)
        step, optimizee = first // self.meta_batch_size, first % self.meta_batch_size
        step += data["window"][0] * self.window_length
        any_bad = tf.reduce_any(is_bad)
        # Finite losses with a meta-gradient that is not: no step to name.
        gradients_bad = ~tf.math.is_finite(tf.linalg.global_norm(gradients))
        # Not a slice: where its index is computed, XLA takes what that is computed from (losses, so
        # parameters and batches) for constants, and compiles anew for each new value of them.
        episode = tf.gather(data["episode"], optimizee)
        place = tf.stack([episode, tf.where(any_bad, step, -1)])
        self.divergence.assign(tf.where(any_bad | gradients_bad, place, self.divergence))
        return ~(any_bad | gradients_bad)
