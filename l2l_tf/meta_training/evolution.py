"""Persistent evolution strategies: the meta-gradient from losses alone, forward.

Of φ, the rule's trainable weights, K antithetic *pairs* run with each optimizee. The members of a
pair have the same θ_0 and see the same batches; in window w of an episode they run with φ + ε_w and
φ - ε_w, where ε_w is drawn N(0, σ²) anew, and each goes on from its own θ and state of the rule::

    ξ_w = Σ_{v ≤ w} ε_v,           ĝ_w = ξ_w (L_w(φ + ε) - L_w(φ - ε)) / (2 σ²)

What an earlier window's perturbation does to a later window's loss is in ξ (Vicol, Metz and
Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs with persistent
evolution strategies"). So Σ_w ĝ_w is an unbiased estimate of the
gradient of E_ε Σ_w L_w, the loss smoothed over a width of σ, however short the windows are: nothing
is truncated. With one window an episode this is plain evolution strategies (Metz et al. 2019,
"Understanding and correcting pathologies in the training of learned optimizers").

The smoothed loss has a useful gradient where that of L explodes, in long or chaotic episodes; no
derivative is taken; and nothing is recorded. The price is variance: of
ĝ it grows with the number of weights, and with the number of windows.
"""

from typing import NamedTuple

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.engine import pieces
from l2l_tf.engine.unroll import Runs
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.estimator import Carry, Estimate, Estimator
from l2l_tf.problems.base import fold_in
from l2l_tf.update_rules import base


class EvolutionCarry(NamedTuple):
    """What goes from window to window, of M optimizees with K pairs each; C weights in φ."""

    members: Carry  # each of one optimizee; leaves [M · K · 2, ...], the pairs' members in turn
    perturbations: tf.Tensor  # ξ, [M · K, C]
    runs: Runs  # of each optimizee: the member that was stopped first, if one was


class PersistentEvolution(Estimator):
    """The meta-gradient by persistent evolution strategies; see the module.

    In an ``Estimate``, `losses` and `values` are the means over the members, all of which are
    perturbed. A pair adds nothing if the objective of one of its members is not finite (as that of
    a loss that is not); an optimizee is left out if all its pairs are. One that `max_loss_ratio`
    has stopped counts, with the loss that stopped it.

    What is drawn depends on the episode, the window and the pair alone, not on which optimizees run
    side by side or on which device. Weights that are not trainable are not perturbed; and like the
    other estimators, this one takes a rule's initial state as given.

    Args:
        objective: see ``Estimator``.
        segment_length: of no effect: the rule's state is not cut.
        max_loss_ratio: see ``unroll``.
        standard_deviation: σ, of the perturbation of a weight.
        num_pairs: K. More of them, or more optimizees, make the estimate less noisy, alike.

    Raises:
        TypeError, ValueError: `standard_deviation` is not above 0, or `num_pairs` not 1 at least.

    Example:

    >>> import functools, keras, l2l_tf
    >>> rule = l2l_tf.update_rules.CoordinatewiseLSTM(layers=(4,), seed=0)
    >>> trainer = l2l_tf.MetaTrainer(
    ...     rule,
    ...     l2l_tf.problems.get("quadratic"),
    ...     num_steps=40,
    ...     estimator=functools.partial(PersistentEvolution, standard_deviation=0.02),
    ... )
    >>> trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    >>> history = trainer.fit(trainer.dataset(seed=0, num_episodes=2), verbose=0)
    """

    is_recorded = False

    def __init__(
        self,
        objective,
        segment_length=None,
        max_loss_ratio=None,
        *,
        standard_deviation=0.01,
        num_pairs=1,
    ):
        super().__init__(objective, None, max_loss_ratio)
        self.standard_deviation = arguments.real("standard_deviation", standard_deviation, above=0)
        self.num_pairs = arguments.integer("num_pairs", num_pairs, 1)

    def start(self, rule, problem, parameters):
        optimizees = [
            super(PersistentEvolution, self).start(rule, problem, parameters[m : m + 1])
            for m in range(parameters.shape[0])
        ]
        members = tf.nest.map_structure(
            lambda *leaves: tf.repeat(tf.stack(leaves), 2 * self.num_pairs, axis=0), *optimizees
        )
        num_perturbations = parameters.shape[0] * self.num_pairs
        size = base.num_coordinates(_layout(rule))
        perturbations = tf.zeros([num_perturbations, size], rule.dtype)
        return EvolutionCarry(members, perturbations, self._worst(members.runs))

    def __call__(self, rule, problem, carry, data):
        drawn = self._draw(rule, data)
        perturbations = carry.perturbations + drawn
        of_members = tf.reshape(tf.stack([drawn, -drawn], axis=1), [-1, drawn.shape[-1]])
        losses, members = self._run(rule, problem, carry.members, of_members, data["batches"])
        values, is_bad = objectives.values(
            self.objective, tf.transpose(losses), members.runs.first_losses[:, 0]
        )
        is_bad = tf.reduce_any(tf.reshape(is_bad, [-1, 2]), axis=1)  # of pairs
        difference = values[::2] - values[1::2]
        difference = tf.where(is_bad, tf.zeros_like(difference), difference)
        factor = 2 * self.standard_deviation**2 * difference.shape[0]
        gradient = tf.linalg.matvec(perturbations, difference / factor, transpose_a=True)

        is_bad = tf.reshape(is_bad, [-1, self.num_pairs])
        left_out = tf.reduce_all(is_bad, axis=1)
        is_counted = ~is_bad | left_out[:, None]
        return Estimate(
            base.split(gradient, _layout(rule)),
            EvolutionCarry(members, perturbations, self._worst(members.runs)),
            tf.transpose(_mean_of_pairs(losses, is_counted)),
            _mean_of_pairs(values, is_counted),
            left_out,
        )

    def _draw(self, rule, data):
        """ε of each pair, ``[M · K, C]``."""
        size = base.num_coordinates(_layout(rule))

        def of_pair(row):
            # Below 0, where the seeds of episodes and of drawn coordinates never are.
            seed = fold_in(tf.stack([row[0], -1 - row[1]]), row[2])
            return tf.random.stateless_normal([size], seed, dtype=rule.dtype, alg="philox")

        pairs = tf.range(self.num_pairs, dtype=tf.int64)
        columns = tf.meshgrid(data["episode"], pairs, indexing="ij")
        episode, pair = (tf.reshape(column, [-1]) for column in columns)
        rows = tf.stack([episode, tf.repeat(data["window"], self.num_pairs), pair], axis=1)
        drawn = tf.map_fn(of_pair, rows, fn_output_signature=rule.dtype)
        return self.standard_deviation * tf.ensure_shape(drawn, [rows.shape[0], size])

    def _run(self, rule, problem, members, perturbations, batches):
        """Losses ``[M · K · 2, T + 1]`` and members after a window, as many at once as cores."""
        center = base.flatten([v.value for v in rule.trainable_variables])
        num_members, each = perturbations.shape[0], 2 * self.num_pairs

        def run(index, perturbation, member):
            of_trainable = base.split(center + perturbation, _layout(rule))
            of_trainable = dict(zip(map(id, rule.trainable_variables), of_trainable))
            optimizee = tf.nest.map_structure(
                lambda leaf: tf.gather(leaf, [index // each]), batches
            )
            trajectory, after = self.unroll(
                rule,
                problem,
                member,
                {"batches": optimizee},
                record=False,
                weights=[of_trainable.get(id(v), v.value) for v in rule.variables],
            )
            return trajectory.losses[:, 0], after

        num_losses = tf.nest.flatten(batches)[0].shape[1]
        specs = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), members
        )
        at_once = 1 if tf.executing_eagerly() else pieces.policy().side_by_side
        return tf.map_fn(
            lambda elements: run(*elements),
            (tf.range(num_members), perturbations, members),
            fn_output_signature=(tf.TensorSpec([num_losses], members.parameters.dtype), specs),
            parallel_iterations=at_once,
        )

    def _worst(self, of_members):
        """``Runs`` ``[M]`` of those of all members, ``[M · K · 2, 1]``."""
        runs = tf.nest.map_structure(
            lambda leaf: tf.reshape(leaf, [-1, 2 * self.num_pairs]), of_members
        )
        never = tf.int32.max
        stopped_at = tf.reduce_min(tf.where(runs.stopped_at < 0, never, runs.stopped_at), axis=1)
        return Runs(
            tf.reduce_all(runs.running, axis=1),
            runs.first_losses[:, 0],
            tf.reduce_mean(runs.losses, axis=1),
            tf.where(stopped_at == never, -1, stopped_at),
            runs.num_steps[0, 0],
        )


def _mean_of_pairs(of_members, is_counted):
    """Of ``[M · K · 2, ...]`` the mean over the pairs that count, bool ``[M, K]``: ``[M, ...]``."""
    shape = of_members.shape[1:]
    of_pairs = tf.reduce_mean(tf.reshape(of_members, [*is_counted.shape, 2, *shape]), axis=2)
    is_counted = tf.reshape(is_counted, [*is_counted.shape, *[1] * shape.rank])
    counted = tf.reduce_sum(tf.where(is_counted, of_pairs, tf.zeros_like(of_pairs)), axis=1)
    return counted / tf.reduce_sum(tf.cast(is_counted, of_members.dtype), axis=1)


def _layout(rule):
    """Of φ, the rule's trainable weights."""
    return [(v.path, tuple(v.shape)) for v in rule.trainable_variables]
