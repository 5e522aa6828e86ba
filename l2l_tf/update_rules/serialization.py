"""Rules as JSON: a rule's registered class and its config, φ included.

Nothing is imported and no code runs: only what is registered with Keras is made.
"""

import copy

import keras

from l2l_tf.update_rules import base


def serialize(rule):
    """``{"class": registered name, "config": config}`` of a rule.

    Raises:
        ValueError: the rule's class is not registered.
    """
    name = registered_name(type(rule))
    if name is None:
        raise ValueError(
            f"{type(rule).__name__} is not registered, so it could not be loaded again. Decorate "
            "the class with @keras.saving.register_keras_serializable()."
        )
    return {"class": name, "config": copy.deepcopy(rule.get_config())}


def deserialize(content):
    """The rule that ``serialize`` wrote.

    Raises:
        ValueError: its class is not registered, or the config does not fit the class.
    """
    cls = rule_class(content["class"])
    if cls is None:
        raise ValueError(
            f"{content['class']!r} is not a registered UpdateRule. Import the module that defines "
            "it first."
        )
    rule = cls.from_config(content["config"])
    if content["config"].get("weights") is None and "weights" in rule.get_config():
        # Older configs carry no weights but trainable ones.
        if any(weight.trainable for weight in rule.weights_to_save):
            raise ValueError("its config lacks 'weights'")
    return rule


def rule_class(name):
    """The rule class of a registered name; None if there is none."""
    cls = keras.saving.get_registered_object(name)
    return cls if isinstance(cls, type) and issubclass(cls, base.UpdateRule) else None


def registered_name(thing):
    """The name by which a class or function is registered with Keras; None if it is not."""
    if not hasattr(thing, "__name__"):
        return None
    name = keras.saving.get_registered_name(thing)
    return name if keras.saving.get_registered_object(name) is thing else None
