"""Progress: how far a meta-training is within an epoch, so that it can be resumed there."""

import json

import tensorflow as tf


class Progress(tf.train.experimental.PythonState):
    """What a checkpoint has beside weights: the sums of the epoch's metrics, who diverged.

    Args:
        trainer: ``MetaTrainer``.
    """

    def __init__(self, trainer):
        self._trainer = trainer

    def serialize(self):
        metrics = [[float(v.numpy()) for v in of] for of in self._metrics()]
        return json.dumps({"metrics": metrics, "divergence": self._trainer.divergence.state()})

    def deserialize(self, text):
        state = json.loads(text)
        for variables, values in zip(self._metrics(), state["metrics"]):
            for variable, value in zip(variables, values):
                variable.assign(value)
        self._trainer.divergence.restore(state["divergence"])

    def _metrics(self):
        return [m.variables for m in (self._trainer.mean_loss, self._trainer.mean_objective)]


def position(episode, validate_every, steps, is_validated):
    """Where a meta-training goes on: the epoch, and how many of its meta-steps are done.

    All of them are if what is left of the epoch is its validation.

    Args:
        episode: how many it was trained on.
        validate_every: episodes of an epoch.
        steps: meta-steps of an epoch.
        is_validated: whether there was a validation after this episode.
    """
    epoch, rest = divmod(episode, validate_every)
    if rest == 0 and epoch > 0 and not is_validated:
        return epoch - 1, steps
    return epoch, rest * steps // validate_every
