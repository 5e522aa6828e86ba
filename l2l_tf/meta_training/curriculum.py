"""Curriculum: a meta-training at one horizon after another, each longer than the one before.

Short horizons are cheap and teach the first steps; a rule that has seen no others anneals its step
size by their end (short-horizon bias). Each stage is a meta-training of its own, in a directory of
its own, that starts from the best rule of the one before; and is validated at the horizon of the
next, so that this best is not the best for the short horizon alone.
"""

import math
import os

import keras

from l2l_tf import arguments, saving
from l2l_tf.meta_training import save_directory
from l2l_tf.meta_training.run import meta_train


@keras.saving.register_keras_serializable(package="l2l_tf")
class PartOfCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A cosine decay over all stages, from where a stage is in it.

    Args:
        initial_learning_rate: at the start of the first stage.
        first: meta-steps of the stages before.
        total: meta-steps of all stages.
    """

    def __init__(self, initial_learning_rate, first, total):
        super().__init__()
        self.initial_learning_rate = initial_learning_rate
        self.first = first
        self.total = total

    def __call__(self, step):
        step = keras.ops.cast(step, "float32") + self.first
        share = keras.ops.minimum(step / self.total, 1.0)
        return self.initial_learning_rate * 0.5 * (1 + keras.ops.cos(math.pi * share))

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "first": self.first,
            "total": self.total,
        }


def stages(horizons, budgets):
    """The stages of a curriculum.

    Args:
        horizons: steps of an episode of each stage, increasing.
        budgets: episodes of each.

    Returns:
        List of dicts of "num_steps", "num_episodes", "validation_steps".

    Raises:
        ValueError: the horizons do not increase, or there is not a budget for each.

    >>> stages([20, 100], [400, 100])[0]
    {'num_steps': 20, 'num_episodes': 400, 'validation_steps': 100}
    """
    for name, values in (("horizons", horizons), ("budgets", budgets)):
        for value in values:
            arguments.integer(name, value, 1)
    if len(horizons) != len(budgets):
        raise ValueError(
            "Expected: as many numbers of episodes as horizons. Received: "
            f"{len(budgets)}, {budgets}, for the horizons {horizons}"
        )
    if sorted(set(horizons)) != list(horizons):
        raise ValueError(f"Expected: horizons that increase. Received: {horizons}")
    after = [*horizons[1:], horizons[-1]]
    return [
        {"num_steps": steps, "num_episodes": episodes, "validation_steps": validation}
        for steps, episodes, validation in zip(horizons, budgets, after)
    ]


def run(
    make_trainer,
    rule,
    save_dir,
    stages_,
    *,
    meta_learning_rate,
    validate_every,
    settings,
    **options,
):
    """Meta-trains through the stages; the same call resumes. See ``run.meta_train``.

    The last stage is in `save_dir`, each before it in ``horizon-<steps>/`` below. One cosine decay
    of the meta-learning rate goes over all of them.

    Args:
        make_trainer: function of a rule and the steps of an episode that returns a ``MetaTrainer``.
        rule: ``UpdateRule`` of the first stage.
        save_dir, settings: as of ``meta_train``; the settings tell of all stages.
        stages_: of ``stages``.
        meta_learning_rate: at the start.
        validate_every: of each stage, a list.
        **options: of ``meta_train``.

    Returns:
        The card of the last stage.
    """
    save_dir = save_directory.check(save_dir)
    trainers = [make_trainer(rule, stages_[0]["num_steps"])]
    if trainers[0].replicas.is_first:
        # First, so that the directory is known as ours when there are others in it.
        as_read = save_directory.as_read(trainers[0].problem, settings)
        save_directory.open_directory(save_dir, as_read, options.get("command"))
    meta_steps = [
        stage["num_episodes"] // trainers[0].num_episodes_at_once * trainers[0].num_windows
        for stage in stages_
    ]
    for index, (stage, every) in enumerate(zip(stages_, validate_every)):
        is_last = index == len(stages_) - 1
        directory = save_dir
        if not is_last:
            directory = os.path.join(save_dir, f"horizon-{stage['num_steps']}")
        trainer = trainers.pop() if trainers else make_trainer(rule, stage["num_steps"])
        rate = PartOfCosine(meta_learning_rate, sum(meta_steps[:index]), sum(meta_steps))
        card = meta_train(
            trainer,
            directory,
            num_episodes=stage["num_episodes"],
            meta_learning_rate=rate if len(stages_) > 1 else meta_learning_rate,
            validate_every=every,
            validation_steps=stage["validation_steps"],
            settings=settings if is_last else {**settings, "stage": index},
            **options,
        )
        if not is_last and trainer.replicas.is_first:
            rule = saving.load(directory)
    return card
