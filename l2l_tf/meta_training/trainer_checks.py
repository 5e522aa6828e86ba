"""What a MetaTrainer takes: its rule and problem, what it is compiled with, its callbacks.

Each of these would train, and not do what it says, or fail in the middle of a training.
"""

import keras

from l2l_tf import arguments
from l2l_tf.engine.parts import Parts
from l2l_tf.problems.base import check_problem
from l2l_tf.problems.mixture import Mixture
from l2l_tf.update_rules import base

NOT_AS_A_WHOLE = (
    "A MetaTrainer is not saved as a whole: its problem and objective have no config. Use "
    "l2l_tf.save(trainer.rule, path) for the rule, and trainer.save_weights('name.weights.h5') and "
    "load_weights for all that a resumed meta-training needs."
)


def check_rule_and_problem(rule, problem):
    """Refuses a rule that cannot learn, and a problem on which the meta-gradient is not right.

    Returns:
        The problems: of a mixture, all; else the one.
    """
    hint = (
        "l2l_tf.update_rules.CoordinatewiseLSTM() makes a new one, l2l_tf.load(name_or_path) "
        "loads one."
    )
    arguments.instance("rule", rule, base.UpdateRule, "an UpdateRule", hint)
    problems = problem.problems if isinstance(problem, Mixture) else [problem]
    for of_mixture in problems:
        check_problem(of_mixture)
        if of_mixture.acts_between_steps:
            raise ValueError(
                f"MetaTrainer needs a problem whose parameters change by updates alone: else the "
                f"meta-gradient is not what it computes. Received '{of_mixture.name}', on which "
                f"{'; '.join(of_mixture.acts_between_steps)} act from step to step too. Leave that "
                "out of the model; an evaluation takes it as it is."
            )
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
    return problems


def estimator_of(estimator, by_name, second_derivatives):
    """The estimator of that name, or that is one; of None, what `second_derivatives` says."""
    if estimator is None:
        estimator = "exact" if second_derivatives else "identity"
    if isinstance(estimator, str):
        estimator = by_name[arguments.choice("estimator", estimator, by_name)]
    else:
        what = f"of objective, segment_length and max_loss_ratio, or one of {tuple(by_name)}"
        arguments.function("estimator", estimator, what)
    if second_derivatives and estimator is not by_name["exact"]:
        raise ValueError(
            "`second_derivatives` is another word for estimator='exact'. Received both it and "
            f"estimator={estimator!r}"
        )
    return estimator


def check_can_draw(rule, problem, backward_fraction, second_derivatives):
    """Refuses to draw coordinates of a rule that has no coordinatewise part."""
    can_draw = Parts(rule, problem.layout).has_coordinatewise()
    if backward_fraction < 1.0 and (not can_draw or second_derivatives):
        raise ValueError(
            "`backward_fraction` below 1 needs a rule with coupling 'coordinate', or one for "
            "some of the variables, and the first-order meta-gradient. Received: "
            f"coupling={rule.coupling!r}, second_derivatives={second_derivatives}"
        )


def check_replicas(num_replicas, meta_batch_size):
    """Refuses to spread optimizees that do not go evenly."""
    if meta_batch_size % num_replicas:
        raise ValueError(
            "`meta_batch_size` must be a multiple of the number of replicas of the "
            "tf.distribute strategy, on which the optimizees of a group are spread evenly. "
            f"Received: meta_batch_size={meta_batch_size}, of {num_replicas} replicas"
        )


def check_number_of_episodes(num_episodes, num_groups, meta_batch_size):
    """Refuses an epoch that does not end with a meta-step."""
    if num_episodes % (num_groups * meta_batch_size):
        times = " times `num_groups`" if num_groups > 1 else ""
        also = f", num_groups={num_groups}" if num_groups > 1 else ""
        raise ValueError(
            f"`num_episodes` must be a multiple of `meta_batch_size`{times}. Received: "
            f"num_episodes={num_episodes}, meta_batch_size={meta_batch_size}{also}"
        )


def check_compiled(trainer):
    if not trainer.compiled:
        raise ValueError(
            "Expected: a MetaTrainer with an optimizer of the meta-parameters. Received: one that "
            "has none. Call trainer.compile(optimizer=...) first."
        )


def check_not_given(**arguments_of_compile):
    """Refuses what of ``compile`` would be ignored."""
    for name, value in arguments_of_compile.items():
        if value is not None:
            raise ValueError(
                f"MetaTrainer.compile takes no `{name}`. Received: {name}={value!r}. What is "
                "minimized is the `objective` of MetaTrainer(...); the loss and final_loss of "
                "the problem are reported."
            )


def check_optimizer(optimizer, rule):
    """Refuses an optimizer of the meta-parameters that is none, or not for these."""
    what = "a Keras optimizer or its name"
    arguments.instance("optimizer", optimizer, keras.optimizers.Optimizer, what)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "A LossScaleOptimizer is for mixed precision, and meta-training is in "
            f"{rule.dtype}. Expected: the optimizer inside of it."
        )
    # A private attribute; without it, Keras complains at the first train step.
    built_for = getattr(optimizer, "_trainable_variables", rule.trainable_variables)
    if optimizer.built and {id(v) for v in built_for} != {id(v) for v in rule.trainable_variables}:
        raise ValueError(
            "`optimizer` has been built for other variables than this rule's. Make a new one "
            "for each MetaTrainer."
        )


def check_arguments_of_fit(received):
    """Refuses what Keras' ``fit`` takes besides, and would not do with episodes as data."""
    expected = ("epochs", "initial_epoch", "verbose", "validation_freq", "validation_steps")
    others = [name for name in received if name not in expected]
    if others:
        raise TypeError(
            "MetaTrainer.fit takes dataset, callbacks, validation_data, steps_per_epoch, "
            f"{', '.join(expected)}. Received also: {', '.join(others)}"
        )


def check_callback(callback, steps_per_epoch):
    """Refuses, before training, a callback that would fail in it or resume to another rule."""
    arguments.instance("callbacks", callback, keras.callbacks.Callback, "Keras callbacks")
    if getattr(callback, "save_weights_only", True) is False:
        raise ValueError(
            f"{type(callback).__name__} would save the whole model. {NOT_AS_A_WHOLE} "
            "Expected: save_weights_only=True."
        )
    if isinstance(callback, keras.callbacks.BackupAndRestore) and (
        callback.save_freq != "epoch" or steps_per_epoch is not None
    ):
        raise ValueError(
            "BackupAndRestore resumes at the start of an epoch, whose dataset starts with a new "
            "episode. Expected: save_freq='epoch', and no `steps_per_epoch`. Received: "
            f"save_freq={callback.save_freq!r}, steps_per_epoch={steps_per_epoch}. For more "
            "backups, make epochs of fewer episodes: dataset(seed, num_episodes)."
        )
