"""The directory of a saved rule: which files there are ours, and the removal of no others."""

import os
import re

import tensorflow as tf

from l2l_tf import paths
from l2l_tf.files import atomic
from l2l_tf.files.rule_file import RULE_FILES

_SHARD = "[0-9]{5}-of-[0-9]{5}"
_BUNDLE = rf"(index|data-{_SHARD})(\.tempstate[0-9]+)?"
# All that `saving.save` writes, and what it leaves when it is killed. Directories end in "/".
_OURS = re.compile(
    "|".join(
        [
            *map(re.escape, RULE_FILES),
            r"(saved_model|fingerprint)\.pb(\.tmp[0-9a-f]+)?",
            "assets/",
            "variables/(variables_temp/)?",
            rf"variables/variables\.{_BUNDLE}",
            rf"variables/variables_temp/part-{_SHARD}\.{_BUNDLE}",
        ]
    )
)


def has_rule(directory):
    """Whether a directory has a rule's file, of any version."""
    return any(tf.io.gfile.exists(os.path.join(directory, name)) for name in RULE_FILES)


def foreign(directory, within=""):
    """What lies in a directory that ``saving.save`` does not write there; links among them.

    Args:
        directory: an existing one, no link.
        within: the part of it to look at: "", or a relative path that ends in "/".

    Returns:
        List of paths relative to `directory`.
    """
    found = []
    for entry in sorted(tf.io.gfile.listdir(os.path.join(directory, within))):
        name = within + entry.rstrip("/")
        path = os.path.join(directory, name)
        name += "/" if tf.io.gfile.isdir(path) else ""
        if os.path.islink(path) or not _OURS.fullmatch(name):
            found.append(name)
        elif name.endswith("/"):
            found += foreign(directory, name)
    return found


def check_may_be_written(path, overwrite):
    """Whether ``saving.save`` may write a directory. Undoes a replacement that was killed.

    Raises:
        FileExistsError: there is something that is not to be replaced.
    """
    paths.check_is_no_link(path)
    atomic.put_back(path, has_rule)
    if not tf.io.gfile.exists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{path!r} exists. Choose another path, or pass overwrite=True.")
    if not has_rule(path):
        raise FileExistsError(
            f"{path!r} exists and is not a saved rule (it has no {' or '.join(RULE_FILES)}), "
            "so it is left as it is. Choose another path."
        )
    _check_has_nothing_foreign(path)
    replaced = path + atomic.REPLACED  # where the old rule goes, and one may lie
    paths.check_is_no_link(replaced)
    if tf.io.gfile.exists(replaced):
        _check_has_nothing_foreign(replaced)


def _check_has_nothing_foreign(path):
    if not tf.io.gfile.isdir(path):
        raise FileExistsError(f"{path!r} is no directory, so it is left as it is. Move it away.")
    others = foreign(path)
    if others:
        raise FileExistsError(
            f"{path!r} holds what l2l_tf.save did not write, so it is left as it is: "
            f"{', '.join(others)}. Move that away, or choose another path."
        )


def remove(directory):
    """Removes a rule's directory; a link, and one that holds anything else, stays as it is."""
    if os.path.islink(directory) or not tf.io.gfile.isdir(directory) or foreign(directory):
        return
    tf.io.gfile.rmtree(directory)


def is_name(name):
    """Whether a meta-training may have given this name to a rule's directory."""
    return isinstance(name, str) and re.fullmatch("rule-[0-9]+", name) is not None


def named(save_dir, name):
    """The path of a rule that the card of a meta-training names.

    None if it is no name of a rule, or if what has this name is a link or no directory. There may
    be nothing at the path.
    """
    path = os.path.join(save_dir, name) if is_name(name) else None
    if path is None or os.path.islink(path):
        return None
    return path if tf.io.gfile.isdir(path) or not tf.io.gfile.exists(path) else None
