"""Ensemble: several problems as one, their losses weighted and summed."""

import itertools

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import base, weighted


class Ensemble(base.Problem):
    """f(θ_0, θ_1, …) = Σ_i w_i f_i(θ_i): several optimizees as one, as in DeepMind's code.

    To meta-train a rule on different problems at once. Each member has parameters and batches of
    its own, and each of its gradients comes times its weight. (Of a ``Mixture``, each episode is of
    one problem.)

    Args:
        members: list of pairs ``(problem, weight)``: a ``Problem`` and a number above 0 (a member
            of weight 0 would not be trained, one of a negative weight would be maximized). The
            tensors of member i are called ``"<i>/<problem's name>/<tensor's name>"``.
        name: of the problem, for tables. None takes the sum that the command line takes, such as
            "quadratic+2*rastrigin".

    Raises:
        ValueError: no members, a weight is not finite and above 0, or the members' dtypes differ.
        TypeError: `members` is no list, or a member is not such a pair.

    >>> from l2l_tf.problems import Quadratic, Rastrigin
    >>> problem = Ensemble([(Quadratic(10), 1.0), (Rastrigin(2), 0.5)])
    >>> problem.layout
    [('0/quadratic/theta', (10,)), ('1/rastrigin/theta', (2,))]
    >>> problem.name
    'quadratic+0.5*rastrigin'
    """

    def __init__(self, members, name=None):
        self.members = weighted.checked_pairs(members, "an ensemble")
        problems = [problem for problem, _ in self.members]
        self.dtype = problems[0].dtype
        if name is None:
            name = weighted.joined_name(self.members, "+")
        self.name = arguments.text("name", name)
        self.layout = [
            (f"{index}/{problem.name}/{tensor}", shape)
            for index, problem in enumerate(problems)
            for tensor, shape in problem.layout
        ]
        self.vectorized = all(problem.vectorized for problem in problems)
        self.has_heldout = all(problem.has_heldout for problem in problems)
        if any(problem.settings for problem in problems):
            self.settings = {"members": [problem.settings for problem in problems]}
        for problem in problems:
            base.check_updates_alone(problem, "The members of an ensemble")

    def sample_parameters(self, seed):
        return [
            tensor
            for index, (problem, _) in enumerate(self.members)
            for tensor in problem.sample_parameters(base.fold_in(seed, index))
        ]

    def batches(self, side, seed, num_batches):
        return tf.data.Dataset.zip(
            tuple(
                problem.batches(side, base.fold_in(seed, index), num_batches)
                for index, (problem, _) in enumerate(self.members)
            )
        )

    def episode(self, side, seed, num_batches, *, num_distinct=None, member=()):
        of_members = [
            problem.episode(
                side, seed, num_batches, num_distinct=num_distinct, member=(*member, index)
            )
            for index, (problem, _) in enumerate(self.members)
        ]
        parameters, _, batches = zip(*of_members)  # without state, as `acts_between_steps` is empty
        return [*itertools.chain(*parameters)], [], tf.data.Dataset.zip(batches)

    def loss_and_gradients(self, parameters, batch):
        losses, gradients, start = [], [], 0
        for (problem, weight), member_batch in zip(self.members, batch):
            end = start + len(problem.layout)
            loss, of_member = problem.loss_and_gradients(parameters[start:end], member_batch)
            losses.append(weight * loss)
            gradients.extend(weight * gradient for gradient in of_member)
            start = end
        return tf.add_n(losses), gradients


def terms(text):
    """The members' names and weights in a sum as the command line takes it.

    Args:
        text: names with "+" between, each with a weight and "*" before it or without (1).

    Returns:
        List of pairs ``(name, weight)``.

    Raises:
        ValueError: a name is empty, or a weight is not a finite number above 0.

    >>> terms("quadratic+2*rastrigin")
    [('quadratic', 1.0), ('rastrigin', 2.0)]
    """
    kind = f"Ensemble {text!r}"
    return [weighted.term(term, kind, "quadratic+2*rastrigin") for term in text.split("+")]
