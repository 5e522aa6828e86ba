"""MetaTrainer: meta-training as a Keras model that is compiled and fit."""

import functools
import warnings

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.engine import whole_episode
from l2l_tf.engine.episodes import check_memory, episodes
from l2l_tf.meta_training import loop
from l2l_tf.meta_training import trainer_checks as checks
from l2l_tf.meta_training.callbacks import InnerStepsPerSecond
from l2l_tf.meta_training.divergence import Divergence
from l2l_tf.meta_training.estimator import Exact, Identity
from l2l_tf.meta_training.evolution import PersistentEvolution
from l2l_tf.meta_training.meta_step import MetaStep
from l2l_tf.meta_training.mixture_data import MixtureData, ValidationOfMixture
from l2l_tf.meta_training.objectives import OBJECTIVES, check_objective
from l2l_tf.meta_training.own_datasets import OwnDatasets
from l2l_tf.meta_training.replicas import Replicas
from l2l_tf.meta_training.validation import Validation
from l2l_tf.problems.mixture import Mixture
from l2l_tf.update_rules import base

CREDITS = ("segment", "episode")
ESTIMATORS = {"identity": Identity, "exact": Exact, "evolution": PersistentEvolution}


class MetaTrainer(keras.Model):
    """Trains an update rule's meta-parameters φ by gradient descent on what the rule achieves.

    Each episode trains a fresh optimizee for `num_steps` steps. The meta-gradient is truncated:
    backpropagation through the rule's state stops every `unroll_length` steps. (Algorithm of
    section 2 of the 2016 paper; to first order, by the identity in ``meta_gradient``.)

    Args:
        rule: the ``UpdateRule`` to train, in place.
        problem: the ``Problem`` to train it on; or a ``Mixture``, with a problem for each episode.
        unroll_length: steps of a segment.
        num_steps: steps of an episode, a multiple of `unroll_length`.
        meta_batch_size: optimizees of a group, which are of one problem and run side by side.
        num_groups: groups whose meta-gradients are averaged in a meta-step. They run at the same
            time, on as many cores as there are.
        credit: which later losses an update answers for: "segment" sums them to the segment's
            end, for one meta-update a segment, as the paper does; "episode" sums them to the
            episode's end, for one meta-update an episode.
        objective: the sum of losses ("sum", the paper's), of their square roots ("sqrt") or
            logarithms ("log"), the "last" loss, "relative" to the first one (the mean of
            log(f(θ_t)/f(θ_0) + 0.03), by which problems of all scales count alike), or a function
            of an optimizee's losses f(θ_1) … f(θ_T) ``[T]`` to a scalar. One with a parameter
            `first_loss` gets f(θ_0) too.
        backward_fraction: the share of coordinates, drawn at random for each meta-gradient, that
            are backpropagated: an unbiased estimate at a fraction of the cost. In (0, 1]. Coupled
            coordinates are always all backpropagated.
        second_derivatives: the exact meta-gradient, through the optimizee's gradients too.
        chunk_size: see ``meta_gradient``.
        estimator: of the meta-gradient: "identity", the default; "exact", which
            `second_derivatives` says too; "evolution", persistent evolution strategies; or a
            function of `objective`, `segment_length` and `max_loss_ratio` that returns an
            ``Estimator``, such as ``functools.partial(PersistentEvolution, num_pairs=4)``.
        clip_norm: the norm at which the meta-gradient of each group is clipped, before they are
            averaged. None: it is not.
        max_loss_ratio: an optimizee whose loss is above this many times its f(θ_0) is stopped, and
            that loss counts for the rest of the episode. None: it goes on.
        max_diverged: the share of an epoch's optimizees that may diverge: their loss is not finite,
            or above `max_loss_ratio`. Each is told in a warning, and one whose loss is not finite
            adds nothing to the meta-gradient. If more do, training ends with a
            ``FloatingPointError``.
        strategy: ``tf.distribute.Strategy`` on whose replicas each group's optimizees are spread
            evenly. None takes the one in whose scope this is called.

    Metrics: ``loss``, the mean of f(θ_1) … f(θ_T), and ``objective``, of optimizees that did not
    diverge, and ``diverged``, the share of those that did; on validation also ``final_loss``, the
    mean of the last five, and of a mixture ``worst``, the highest of its problems' objectives; all
    problems' are in ``validation.by_problem()``.

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
        estimator=None,
        num_groups=1,
        clip_norm=None,
        max_loss_ratio=None,
        max_diverged=0.1,
        strategy=None,
    ):
        problems = checks.check_rule_and_problem(rule, problem)
        unroll_length = arguments.integer("unroll_length", unroll_length, 1)
        num_steps = arguments.integer("num_steps", num_steps, 1)
        if num_steps % unroll_length:
            raise ValueError(
                "`num_steps` must be a multiple of `unroll_length`. "
                f"Received: num_steps={num_steps}, unroll_length={unroll_length}"
            )
        meta_batch_size = arguments.integer("meta_batch_size", meta_batch_size, 1)
        num_groups = arguments.integer("num_groups", num_groups, 1)
        arguments.choice("credit", credit, CREDITS)
        backward_fraction = arguments.real(
            "backward_fraction", backward_fraction, above=0, maximum=1
        )
        arguments.boolean("second_derivatives", second_derivatives)
        estimator = checks.estimator_of(estimator, ESTIMATORS, second_derivatives)
        second_derivatives = estimator is Exact
        if chunk_size is not None:
            chunk_size = arguments.integer("chunk_size", chunk_size, 1)
        if clip_norm is not None:
            clip_norm = arguments.real("clip_norm", clip_norm, above=0)
        if max_loss_ratio is not None:
            max_loss_ratio = arguments.real("max_loss_ratio", max_loss_ratio, above=1)
        max_diverged = arguments.real("max_diverged", max_diverged, minimum=0, maximum=1)
        if isinstance(objective, str):
            objective = OBJECTIVES[arguments.choice("objective", objective, sorted(OBJECTIVES))]
        what = f"of losses [T] to a scalar, or one of {sorted(OBJECTIVES)}"
        arguments.function("objective", objective, what)
        if strategy is not None:
            what = "a tf.distribute.Strategy or None"
            arguments.instance("strategy", strategy, tf.distribute.Strategy, what)
        replicas = Replicas(strategy)
        checks.check_replicas(replicas.num_replicas, meta_batch_size)
        # A window is what one train step sees: the steps over which credit is given.
        window_length = num_steps if credit == "episode" else unroll_length
        for of_mixture in problems:
            checks.check_can_draw(rule, of_mixture, backward_fraction, second_derivatives)
            # Also where nothing is carried from window to window: a rule that does not take the
            # problem's tensors says so here.
            unroll_lib.initial_state(rule, of_mixture.layout, 1)
        check_objective(objective, window_length, problem.dtype)

        # The rule's dtype: Keras' global policy may be of mixed precision.
        super().__init__(name="meta_trainer", dtype=rule.dtype)
        self.rule = rule
        self.problem = problem
        self.unroll_length = unroll_length
        self.num_steps = num_steps
        self.meta_batch_size = meta_batch_size
        self.num_groups = num_groups
        self.objective = objective
        self.backward_fraction = backward_fraction
        self.second_derivatives = second_derivatives
        self.chunk_size = chunk_size
        self.clip_norm = clip_norm
        self.window_length = window_length
        self.num_windows = num_steps // window_length
        self.replicas = replicas
        if estimator is Identity:
            estimator = functools.partial(
                Identity, backward_fraction=backward_fraction, chunk_size=chunk_size
            )
        self.estimator = estimator(
            objective=objective, segment_length=unroll_length, max_loss_ratio=max_loss_ratio
        )
        num_held = num_groups * meta_batch_size // replicas.num_replicas
        for of_mixture in problems:
            check_memory(of_mixture, window_length, num_held, self.estimator.is_recorded)

        # Episodes trained on so far; datasets go on from here, epoch after epoch.
        self.episode = tf.Variable(0, dtype=tf.int64, trainable=False, name="episode")
        self.divergence = Divergence(max_diverged)
        self._problems = problems
        self._carries = [None] * num_groups  # between the windows of an episode
        self._datasets = OwnDatasets()
        self._meta_step = None
        self._one_program = None
        self.mean_loss = keras.metrics.Mean(name="loss", dtype=rule.dtype)
        self.mean_objective = keras.metrics.Mean(name="objective", dtype=rule.dtype)
        self._names = problem.names if isinstance(problem, Mixture) else [problem.name]
        self.validation = Validation(rule, problems, self._names, self.estimator)
        self.built = True

    @property
    def num_episodes_at_once(self):
        """Of a meta-step: `num_groups` groups of `meta_batch_size`."""
        return self.num_groups * self.meta_batch_size

    def dataset(self, seed=0, num_episodes=100):
        """What ``fit`` trains on: an epoch of `num_episodes` episodes.

        The first epoch starts with episode 0, each later one (also after a restored checkpoint)
        with the episode that follows; episode by episode, its data depend on `seed` alone.

        Args:
            seed: int.
            num_episodes: optimizees an epoch, a multiple of `meta_batch_size` times `num_groups`.

        Returns:
            A ``tf.data.Dataset`` of windows of a group; of a mixture, another iterable.
        """
        num_episodes = arguments.integer("num_episodes", num_episodes, 1)
        checks.check_number_of_episodes(num_episodes, self.num_groups, self.meta_batch_size)
        share = self.replicas.share(self.meta_batch_size)
        windows = {
            "num_windows": self.num_windows,
            "window_length": self.window_length,
            "num_parallel": self.meta_batch_size,
        }
        is_mixture = isinstance(self.problem, Mixture)
        if is_mixture or len(share) < self.meta_batch_size:
            dataset = MixtureData(
                self.problem if is_mixture else Mixture([(self.problem, 1.0)]),
                arguments.integer("seed", seed),
                self.episode.read_value,
                num_episodes,
                num_groups=self.num_groups,
                share=share,
                **windows,
            )
        else:
            dataset = episodes(
                self.problem,
                "train",
                seed,
                "meta_train",
                self.episode.read_value,
                num_episodes,
                num_at_once=self.num_groups,
                **windows,
            )
        return self._datasets.add(dataset, "dataset")

    def validation_dataset(self, seed=0, num_episodes=8, num_steps=None):
        """Whole episodes that meta-training never sees, the same at each validation.

        They use the problem's "train" side, with other initial parameters and other orders of
        batches: the "heldout" side is kept for reports.

        Args:
            seed: int.
            num_episodes: optimizees, of a mixture on each problem.
            num_steps: of an episode; None takes that of meta-training.
        """
        num_episodes = arguments.integer("num_episodes", num_episodes, 1)
        if num_steps is not None:
            arguments.integer("num_steps", num_steps, 1)
        of_each = [
            episodes(
                problem,
                "train",
                seed,
                "validate",
                lambda: tf.constant(0, tf.int64),
                num_episodes,
                num_windows=1,
                window_length=num_steps or self.num_steps,
                num_parallel=num_episodes if problem.vectorized else 1,
            ).cache()
            for problem in self._problems
        ]
        is_mixture = isinstance(self.problem, Mixture)
        dataset = ValidationOfMixture(of_each) if is_mixture else of_each[0]
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
            jit_compile: as of ``keras.Model.compile``; "auto" compiles where that is faster, by
                problem: see ``engine/whole_episode.py``. For `second_derivatives` of a problem that
                is ``vectorized``, "auto" is False, and True a ``ValueError``.
            **kwargs: as of ``keras.Model.compile``.
        """
        names = ("loss_weights", "metrics", "weighted_metrics")
        checks.check_not_given(loss=loss, **{name: kwargs.pop(name, None) for name in names})
        vectorized = [problem for problem in self._problems if problem.vectorized]
        if self.second_derivatives and vectorized:
            # XLA wants shapes as constants; the derivative of ``tf.vectorized_map`` computes them.
            if jit_compile is True:
                raise ValueError(
                    "XLA cannot compile `second_derivatives` of a problem that is vectorized. "
                    f"Received: jit_compile=True, for '{vectorized[0].name}'. Expected: False or "
                    "'auto'."
                )
            jit_compile = False
        self._is_auto = jit_compile == "auto"
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        checks.check_optimizer(self.optimizer, self.rule)
        # Now, so that `load_weights` and callbacks find the variables whose values they restore.
        self.optimizer.build(self.rule.trainable_variables)
        self._meta_step = None  # what was compiled for another optimizer

    def fit(
        self,
        dataset,
        *,
        callbacks=None,
        validation_data=None,
        steps_per_epoch=None,
        initial_step=0,
        **kwargs,
    ):
        """``keras.Model.fit``, ended if too many optimizees diverge.

        ``keras.callbacks.BackupAndRestore`` resumes to the same rule. Of ``ModelCheckpoint``, only
        ``save_weights_only=True`` is taken.

        Args:
            dataset: of ``dataset(...)`` of this trainer.
            validation_data: of ``validation_dataset(...)`` of this trainer, or None.
            callbacks, steps_per_epoch: as of ``keras.Model.fit``.
            initial_step: meta-steps of the first epoch that were done before this call, and that
                the metrics are of: the rest of it is run.
            **kwargs: some of `epochs`, `initial_epoch`, `verbose`, `validation_freq` and
                `validation_steps`, as of ``keras.Model.fit``.

        Raises:
            TypeError: another argument of ``keras.Model.fit``.
            ValueError: data that are not of this trainer, or a callback that cannot save it.
            FloatingPointError: more than `max_diverged` of an epoch's optimizees diverged.
        """
        checks.check_arguments_of_fit(kwargs)
        self._datasets.check("dataset", dataset, "dataset")
        if validation_data is not None:
            self._datasets.check("validation_data", validation_data, "validation_dataset")
        callbacks = keras.tree.flatten(callbacks) if callbacks else []
        for callback in callbacks:
            checks.check_callback(callback, steps_per_epoch)
        checks.check_compiled(self)
        epochs = kwargs.get("epochs", 1)
        steps = steps_per_epoch or len(dataset) // self.num_groups
        callbacks = loop.callback_list(
            self,
            [InnerStepsPerSecond(), *callbacks],
            add_history=True,
            verbose=kwargs.get("verbose", "auto"),
            epochs=epochs,
            steps=steps,
        )
        self.replicas.take_from_first(
            [self.episode, *self.rule.variables, *self.optimizer.variables]
        )
        loop.fit(
            self,
            dataset,
            callbacks=callbacks,
            epochs=epochs,
            initial_epoch=kwargs.get("initial_epoch", 0),
            steps=steps,
            is_cut=steps_per_epoch is not None,
            initial_step=arguments.integer("initial_step", initial_step, 0),
            validate=loop.validating(
                self,
                validation_data,
                callbacks,
                kwargs.get("validation_freq", 1),
                kwargs.get("validation_steps"),
            ),
        )
        return self.history

    def evaluate(self, x=None, *, verbose="auto", steps=None, callbacks=None, return_dict=False):
        """``keras.Model.evaluate`` on a ``validation_dataset(...)`` of this trainer."""
        self._datasets.check("x", x, "validation_dataset")
        callbacks = loop.callback_list(self, callbacks, verbose=verbose, epochs=1, steps=steps)
        logs = loop.evaluate(self, x, callbacks=callbacks, steps=steps)
        return logs if return_dict else list(logs.values())

    def train_on_batch(self, groups):
        """One meta-step, without callbacks.

        Args:
            groups: an element of ``dataset(...)``; with several groups a list of as many.

        Returns:
            The metrics so far, a dict.
        """
        checks.check_compiled(self)
        groups = groups if isinstance(groups, list) else [groups]
        if len(groups) != self.num_groups:
            raise ValueError(
                f"Expected: a window of each of {self.num_groups} groups, a list. "
                f"Received: {len(groups)}"
            )
        self.meta_step(groups)
        return self.train_logs()

    def meta_step(self, groups):
        """One meta-step, without anything read back from the device. See ``train_on_batch``."""
        groups = [group if isinstance(group, tuple) else (0, group) for group in groups]
        if self._meta_step is None:
            self._meta_step = MetaStep(self, self._problems, self._are_one_program())
        window = int(groups[0][1]["window"][0])
        carries, runs, left_out = self._meta_step(groups, self._carries)
        for (index, data), of_runs, of_left_out in zip(groups, runs, left_out):
            places = tf.split(data["episode"], len(of_runs))
            for of_replica in zip(places, of_runs, of_left_out):
                self.divergence.add(self._names[index], *of_replica)
        is_last = window == self.num_windows - 1
        self._carries = [None] * self.num_groups if is_last else carries
        if is_last:
            self.episode.assign_add(self.num_episodes_at_once)

    def _are_one_program(self):
        """Of each problem, whether XLA compiles an episode as a whole."""
        if not self._is_auto:
            return [bool(self.jit_compile)] * len(self._problems)
        if self._one_program is None:
            num_optimizees = self.meta_batch_size // self.replicas.num_replicas
            self._one_program = whole_episode.few_enough(
                [
                    whole_episode.is_one_program(self.rule, problem, num_optimizees)
                    for problem in self._problems
                ]
            )
        return self._one_program

    def validate(self, window):
        """Adds to ``validation`` an element of ``validation_dataset(...)``."""
        index, data = window if isinstance(window, tuple) else (0, window)
        jit_compile = (
            False if self._is_auto else bool(self.jit_compile)
        )  # seldom: not worth a program
        self.validation.add(index, data, jit_compile=jit_compile, run_eagerly=self.run_eagerly)

    @property
    def is_between_episodes(self):
        """Whether nothing is carried from a window to the next."""
        return all(carry is None for carry in self._carries)

    def reset_metrics(self):
        for metric in (self.mean_loss, self.mean_objective):
            metric.reset_state()

    def train_logs(self):
        """The metrics since ``reset_metrics``, a dict of tensors and numbers."""
        return {
            "loss": self.mean_loss.result(),
            "objective": self.mean_objective.result(),
            "diverged": self.divergence.share,
        }

    def save_own_variables(self, store):
        """What a resumed meta-training needs beside the rule and the optimizer."""
        for name, value in self._own_values().items():
            store[name] = np.asarray(value)

    def load_own_variables(self, store):
        if not store.keys():
            warnings.warn(
                "The file holds no episode, so meta-training goes on from episode "
                f"{int(self.episode.numpy())}. It was not saved by a MetaTrainer of this version.",
                stacklevel=2,
            )
            return
        own = self._own_values()
        expected = {name: tuple(np.shape(value)) for name, value in own.items()}
        received = {name: tuple(store[name].shape) for name in store.keys()}
        if expected != received:
            raise ValueError(
                "The file is not of such a MetaTrainer. Expected one with the same rule, problem, "
                "`meta_batch_size` and `credit`, so that what is carried from window to window has "
                f"the shapes {expected}. Received: {received}. For the rule alone, use "
                "l2l_tf.save(trainer.rule, path) and l2l_tf.load(path)."
            )
        self.episode.assign(store["episode"])
        names = [name for name in own if name != "episode"]
        if names:
            values = [tf.convert_to_tensor(np.asarray(store[name])) for name in names]
            self._carries = tf.nest.pack_sequence_as(self._carries_or_zeros(), values)

    def _own_values(self):
        if isinstance(self.problem, Mixture) or self.replicas.num_local > 1:
            if not self.is_between_episodes:
                raise ValueError(
                    "Of a mixture, and on several devices, a MetaTrainer is saved between "
                    "episodes alone. Received: a call in the middle of one."
                )
            return {"episode": self.episode.numpy()}
        carries = self._carries_or_zeros() if self.num_windows > 1 else []
        values = enumerate(tf.nest.flatten(carries))
        return {"episode": self.episode.numpy(), **{f"carry_{i}": v.numpy() for i, v in values}}

    def _carries_or_zeros(self):
        if all(carry is not None for carry in self._carries):
            return self._carries
        num_coordinates = base.num_coordinates(self.problem.layout)
        num_optimizees = len(self.replicas.share(self.meta_batch_size))
        zeros = tf.zeros([num_optimizees, num_coordinates], self.problem.dtype)
        return [self.estimator.start(self.rule, self.problem, zeros)] * self.num_groups

    def save(self, filepath, *args, **kwargs):
        """Not possible; see the error."""
        raise NotImplementedError(checks.NOT_AS_A_WHOLE)

    def get_config(self):
        """Not possible; see the error."""
        raise NotImplementedError(checks.NOT_AS_A_WHOLE)
