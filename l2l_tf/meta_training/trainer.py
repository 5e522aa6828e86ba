"""MetaTrainer: meta-training as a Keras model that is compiled and fit."""

import warnings

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.engine.episodes import check_memory, episodes
from l2l_tf.meta_training import meta_gradient as meta_gradient_lib
from l2l_tf.meta_training import trainer_checks as checks
from l2l_tf.meta_training.callbacks import InnerStepsPerSecond, RaiseAtDivergence
from l2l_tf.meta_training.objectives import (
    OBJECTIVES,
    check_objective,
    loss_weights,
    mean_objective,
)
from l2l_tf.meta_training.own_datasets import OwnDatasets
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
        checks.check_rule_and_problem(rule, problem)
        unroll_length = arguments.integer("unroll_length", unroll_length, 1)
        num_steps = arguments.integer("num_steps", num_steps, 1)
        if num_steps % unroll_length:
            raise ValueError(
                "`num_steps` must be a multiple of `unroll_length`. "
                f"Received: num_steps={num_steps}, unroll_length={unroll_length}"
            )
        meta_batch_size = arguments.integer("meta_batch_size", meta_batch_size, 1)
        arguments.choice("credit", credit, CREDITS)
        backward_fraction = arguments.real(
            "backward_fraction", backward_fraction, above=0, maximum=1
        )
        arguments.boolean("second_derivatives", second_derivatives)
        if chunk_size is not None:
            chunk_size = arguments.integer("chunk_size", chunk_size, 1)
        checks.check_can_draw(rule, problem, backward_fraction, second_derivatives)
        if isinstance(objective, str):
            objective = OBJECTIVES[arguments.choice("objective", objective, sorted(OBJECTIVES))]
        what = f"of losses [T] to a scalar, or one of {sorted(OBJECTIVES)}"
        arguments.function("objective", objective, what)
        checks.check_one_device()
        # A window is what one train step sees: the steps over which credit is given.
        window_length = num_steps if credit == "episode" else unroll_length
        check_memory(problem, window_length, meta_batch_size, is_recorded=True)
        check_objective(objective, window_length, problem.dtype)
        # Also where nothing is carried from window to window: a rule that does not take the
        # problem's tensors says so here.
        unroll_lib.initial_state(rule, problem.layout, 1)

        # The rule's dtype: Keras' global policy may be of mixed precision.
        super().__init__(name="meta_trainer", dtype=rule.dtype)
        self.rule = rule
        self.problem = problem
        self.unroll_length = unroll_length
        self.num_steps = num_steps
        self.meta_batch_size = meta_batch_size
        self.objective = objective
        self.backward_fraction = backward_fraction
        self.second_derivatives = second_derivatives
        self.chunk_size = chunk_size
        self.window_length = window_length
        self.num_windows = num_steps // window_length

        # Episodes trained on so far; datasets go on from here, epoch after epoch.
        self.episode = tf.Variable(0, dtype=tf.int64, trainable=False, name="episode")
        # (episode, step) of the first loss that was not finite; (-1, -1) if none was.
        self.divergence = tf.Variable([-1, -1], dtype=tf.int64, trainable=False)
        self._carry = self._make_carry() if self.num_windows > 1 else None
        self._datasets = OwnDatasets()
        self._mean_loss = keras.metrics.Mean(name="loss", dtype=rule.dtype)
        self._mean_final_loss = keras.metrics.Mean(name="final_loss", dtype=rule.dtype)
        self.built = True

    def dataset(self, seed=0, num_episodes=100):
        """What ``fit`` trains on: an epoch of `num_episodes` episodes.

        The first epoch starts with episode 0, each later one (also after a restored checkpoint)
        with the episode that follows; episode by episode, its data depend on `seed` alone.

        Args:
            seed: int.
            num_episodes: optimizees an epoch, a multiple of `meta_batch_size`.
        """
        num_episodes = arguments.integer("num_episodes", num_episodes, 1)
        if num_episodes % self.meta_batch_size:
            raise ValueError(
                "`num_episodes` must be a multiple of `meta_batch_size`. Received: "
                f"num_episodes={num_episodes}, meta_batch_size={self.meta_batch_size}"
            )
        dataset = episodes(
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
        return self._datasets.add(dataset, "dataset")

    def validation_dataset(self, seed=0, num_episodes=8):
        """Whole episodes that meta-training never sees, the same at each validation.

        They use the problem's "train" side, with other initial parameters and other orders of
        batches: the "heldout" side is kept for reports.

        Args:
            seed: int.
            num_episodes: optimizees.
        """
        num_episodes = arguments.integer("num_episodes", num_episodes, 1)
        dataset = episodes(
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
        return self._datasets.add(dataset, "validation_dataset")

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        *,
        jit_compile="auto",
        **kwargs,
    ):
        """``keras.Model.compile``, without losses and metrics: the optimizee has these.

        Args:
            optimizer: a Keras optimizer or its name, for the meta-parameters.
            loss, loss_weights, metrics, weighted_metrics: not taken, a ``ValueError``. What is
                minimized is the `objective` of ``MetaTrainer``.
            jit_compile: as of ``keras.Model.compile``; for `second_derivatives` of a problem that
                is ``vectorized``, "auto" is False, and True a ``ValueError``.
            **kwargs: as of ``keras.Model.compile``.
        """
        names = ("loss_weights", "metrics", "weighted_metrics")
        checks.check_not_given(loss=loss, **{name: kwargs.pop(name, None) for name in names})
        if self.second_derivatives and self.problem.vectorized:
            # XLA wants shapes as constants; the derivative of ``tf.vectorized_map`` computes them.
            if jit_compile is True:
                raise ValueError(
                    "XLA cannot compile `second_derivatives` of a problem that is vectorized. "
                    f"Received: jit_compile=True, for '{self.problem.name}'. Expected: False or "
                    "'auto'."
                )
            jit_compile = False
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        checks.check_optimizer(self.optimizer, self.rule)
        # Now, so that `load_weights` and callbacks find the variables whose values they restore.
        self.optimizer.build(self.rule.trainable_variables)

    def fit(self, dataset, *, callbacks=None, validation_data=None, steps_per_epoch=None, **kwargs):
        """``keras.Model.fit``, stopped by a loss that is not finite.

        ``keras.callbacks.BackupAndRestore`` resumes to the same rule. Of ``ModelCheckpoint``, only
        ``save_weights_only=True`` is taken.

        Args:
            dataset: of ``dataset(...)`` of this trainer.
            validation_data: of ``validation_dataset(...)`` of this trainer, or None.
            callbacks, steps_per_epoch: as of ``keras.Model.fit``.
            **kwargs: some of `epochs`, `initial_epoch`, `verbose`, `validation_freq` and
                `validation_steps`, as of ``keras.Model.fit``.

        Raises:
            TypeError: another argument of ``keras.Model.fit``.
            ValueError: data that are not of this trainer, or a callback that cannot save it.
            FloatingPointError: a loss is not finite.
        """
        checks.check_arguments_of_fit(kwargs)
        self._datasets.check("dataset", dataset, "dataset")
        if validation_data is not None:
            self._datasets.check("validation_data", validation_data, "validation_dataset")
        callbacks = keras.tree.flatten(callbacks) if callbacks else []
        for callback in callbacks:
            checks.check_callback(callback, steps_per_epoch)
        return super().fit(
            dataset,
            callbacks=[RaiseAtDivergence(), InnerStepsPerSecond(), *callbacks],
            validation_data=validation_data,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            **kwargs,
        )

    def evaluate(self, x=None, *args, **kwargs):
        """``keras.Model.evaluate`` on a ``validation_dataset(...)`` of this trainer."""
        self._datasets.check("x", x, "validation_dataset")
        return super().evaluate(x, *args, **kwargs)

    def save_own_variables(self, store):
        """What a resumed meta-training needs beside the rule and the optimizer."""
        for name, variable in self._own_variables().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store):
        if not store.keys():
            warnings.warn(
                "The file holds no episode, so meta-training goes on from episode "
                f"{int(self.episode.numpy())}. It was not saved by a MetaTrainer of this version.",
                stacklevel=2,
            )
            return
        variables = self._own_variables()
        expected = {name: tuple(variable.shape) for name, variable in variables.items()}
        received = {name: tuple(store[name].shape) for name in store.keys()}
        if expected != received:
            raise ValueError(
                "The file is not of such a MetaTrainer. Expected one with the same rule, problem, "
                "`meta_batch_size` and `credit`, so that what is carried from window to window has "
                f"the shapes {expected}. Received: {received}. For the rule alone, use "
                "l2l_tf.save(trainer.rule, path) and l2l_tf.load(path)."
            )
        for name, variable in variables.items():
            variable.assign(store[name])

    def _own_variables(self):
        carry = {f"carry_{index}": v for index, v in enumerate(self._carry or [])}
        return {"episode": self.episode, **carry}

    def save(self, filepath, *args, **kwargs):
        """Not possible; see the error."""
        raise NotImplementedError(checks.NOT_AS_A_WHOLE)

    def get_config(self):
        """Not possible; see the error."""
        raise NotImplementedError(checks.NOT_AS_A_WHOLE)

    def train_step(self, data):
        data, *_ = keras.utils.unpack_x_y_sample_weight(data)  # a tuple if of `train_on_batch`
        parameters, state = self._start_or_continue(data)
        trajectory, gradients = self._trajectory_and_gradients(parameters, state, data)
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
        data, *_ = keras.utils.unpack_x_y_sample_weight(data)
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
        is_first = (any_bad | gradients_bad) & (self.divergence[0] < 0)
        self.divergence.assign(tf.where(is_first, place, self.divergence))
        return ~(any_bad | gradients_bad)
