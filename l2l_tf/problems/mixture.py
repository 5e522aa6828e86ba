"""Mixture: several problems to meta-train on, a problem for each episode."""

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import base, weighted


class Mixture:
    """A distribution over problems: each episode is of one of them, drawn by its weight.

    To meta-train a rule that is good on many problems. Each problem has its own layout, batches and
    compiled program. (An ``Ensemble`` is another thing: one optimizee, whose loss is the sum of its
    members' losses, and which takes a step in all of them at once.)

    Args:
        members: list of pairs ``(problem, weight)``: a ``Problem`` and a number above 0. Weights
            are relative to their sum.
        name: for tables and cards. None takes what the command line takes, such as
            "quadratic|2*rastrigin".

    Raises:
        ValueError: no members, a weight is not finite and above 0, or the members' dtypes differ.
        TypeError: `members` is no list, or a member is not such a pair.

    >>> from l2l_tf.problems import Quadratic, Rastrigin
    >>> mixture = Mixture([(Quadratic(10), 1.0), (Rastrigin(2), 3.0)])
    >>> mixture.name
    'quadratic|3*rastrigin'
    >>> [int(mixture.draw(seed=0, number=episode)) for episode in range(8)]
    [1, 1, 1, 1, 1, 1, 0, 1]
    """

    def __init__(self, members, name=None):
        pairs = weighted.checked_pairs(members, "a mixture")
        self.problems = [problem for problem, _ in pairs]
        self.weights = [weight for _, weight in pairs]
        self.dtype = self.problems[0].dtype
        name = weighted.joined_name(pairs, "|") if name is None else name
        self.name = arguments.text("name", name)

    def draw(self, seed, number):
        """Which problem is that of an episode: an index into `problems`, int32.

        Args:
            seed: int or scalar tensor.
            number: of the episode, or of a group of episodes that share their problem.
        """
        # A seed's second half is the purpose of its episodes elsewhere, which are 0 and above.
        place = tf.random.stateless_uniform([], base.fold_in([seed, -1], number), alg="philox")
        shares = tf.cumsum(tf.constant(self.weights, tf.float64)) / sum(self.weights)
        index = tf.searchsorted(shares, [tf.cast(place, tf.float64)], side="right")[0]
        return tf.minimum(index, len(self.problems) - 1)

    @property
    def names(self):
        """The problems' names, a number behind those that are there more than once."""
        names = [problem.name for problem in self.problems]
        return [
            name if names.count(name) == 1 else f"{name}-{names[:index].count(name) + 1}"
            for index, name in enumerate(names)
        ]

    @property
    def settings(self):
        """Of all problems, by name: see ``Problem.settings``."""
        named = zip(self.names, self.problems)
        return {name: problem.settings for name, problem in named if problem.settings}


def terms(text):
    """The members' names and weights in a mixture as the command line takes it.

    Args:
        text: names with "|" between, each with a weight and "*" before it or without (1). A member
            that is an ensemble, with "+" in it, has no weight of its own.

    Returns:
        List of pairs ``(name, weight)``.

    >>> terms("quadratic|2*rastrigin|lasso+simple")
    [('quadratic', 1.0), ('rastrigin', 2.0), ('lasso+simple', 1.0)]
    """
    kind = f"Mixture {text!r}"
    return [
        (term.strip(), 1.0) if "+" in term else weighted.term(term, kind, "quadratic|2*rastrigin")
        for term in text.split("|")
    ]
