"""Augmentation: a problem around a problem, each of whose episodes is changed by a draw."""

import tensorflow as tf

from l2l_tf.problems import base


class Augmentation(base.Problem):
    """A problem whose episodes are those of another, each changed by a draw of its own.

    To meta-train a rule that is to be good on any model, on problems that differ more than those at
    hand do. Augmentations go around any problem whose parameters change by updates alone, and
    around each other. Evaluations of an augmented problem are of the augmented one, on either side.

    What is drawn is a function of the episode's seed, and else the episode is the one that
    `problem` has of that seed. The draw travels with each batch: ``(batch of problem, drawn)``.

    Subclasses implement ``draw(seed)``, and override what of the following they change.

    Args:
        problem: the ``Problem`` that is augmented.
        word: for the name, "<problem's name>~<word>".
        settings: a dict of the arguments, as JSON values.

    Raises:
        TypeError: `problem` is no ``Problem``.
        ValueError: more than updates acts on its parameters.
    """

    def __init__(self, problem, word, settings):
        base.check_problem(problem)
        base.check_updates_alone(problem, "What is augmented")
        self.problem = problem
        self.name = f"{problem.name}~{word}"
        self.layout = problem.layout
        self.dtype = problem.dtype
        self.vectorized = problem.vectorized
        self.has_heldout = problem.has_heldout
        self.picture = problem.picture
        if problem.map_labels is None:
            self.map_labels = None
        before = problem.settings.get("augmentations", [])
        augmentations = [*before, {"name": word, **settings}]
        self.settings = {**problem.settings, "augmentations": augmentations}

    def draw(self, seed):
        """What is drawn for an episode: a tensor."""
        raise NotImplementedError

    def change_parameters(self, parameters, drawn):
        """θ_0, of that of `problem`."""
        return parameters

    def change_batches(self, batches, drawn, seed):
        """A ``tf.data.Dataset`` of the batches of an episode, of that of `problem`."""
        return batches

    def limit(self, drawn, num_distinct):
        """The number of distinct batches, of what it is without this one; None is no limit."""
        return num_distinct

    def episode(self, side, seed, num_batches, *, num_distinct=None, member=()):
        # The first two streams of a seed are the parameters' and the batches'.
        stream = 1 + len(self.settings["augmentations"])
        own = base.fold_in(seed, stream, *member)
        drawn = self.draw(base.fold_in(own, 0))
        parameters, state, batches = self.problem.episode(
            side,
            seed,
            num_batches,
            num_distinct=self.limit(drawn, num_distinct),
            member=member,
        )
        batches = self.change_batches(batches, drawn, base.fold_in(own, 1))
        always = tf.data.Dataset.from_tensors(drawn).repeat()
        batches = tf.data.Dataset.zip((batches, always))
        return self.change_parameters(parameters, drawn), state, batches

    def sample_parameters(self, seed):
        """Those of the episode of this seed, as its ``batches`` are."""
        parameters, _, _ = self.episode("train", seed, 1)
        return parameters

    def batches(self, side, seed, num_batches):
        _, _, batches = self.episode(side, seed, num_batches)
        return batches

    def loss_and_gradients(self, parameters, batch):
        batch, _ = batch
        return self.problem.loss_and_gradients(parameters, batch)

    def map_labels(self, function, batch):
        batch, drawn = batch
        return self.problem.map_labels(function, batch), drawn

    def reference_pictures(self, batch):
        batch, _ = batch
        return self.problem.reference_pictures(batch)
