"""evaluate: learned rules against tuned baselines, on equal terms."""

from l2l_tf import saving
from l2l_tf.evaluation import baselines as baselines_lib
from l2l_tf.evaluation.learning_curves import Arena
from l2l_tf.evaluation.pictures import picture_rows
from l2l_tf.evaluation.report import Result


def evaluate(
    problem,
    optimizers,
    baselines=baselines_lib.DEFAULT,
    num_steps=100,
    num_seeds=10,
    *,
    num_tuning_seeds=None,
    seed=0,
    side="heldout",
):
    """Learning curves of learned rules and of tuned baselines on fresh optimizees.

    Fair by construction: every optimizer gets the same initial parameters and batches, held out
    from meta-training; a loss is measured before the step's update; each baseline's learning rate
    is tuned on other seeds for the mean loss over `num_steps`, on a grid of factor 1.5 around a
    best that is not at its edge. A loss that is not finite is reported as such.

    Args:
        problem: a ``Problem``.
        optimizers: dict of name → ``UpdateRule``, or what ``l2l_tf.load`` takes; or a list of the
            latter.
        baselines: names: some of "adam", "rmsprop", "sgd", "momentum", "nag".
        num_steps: the horizon, in optimizee steps.
        num_seeds: optimizees reported on.
        num_tuning_seeds: optimizees that baselines are tuned on; None takes `num_seeds`, but 1,024
            at least of random functions: they are cheap, and a rate that is tuned on too few of
            them diverges on the next steep one.
        seed: int, of all of them.
        side: "heldout" or "train" data.

    Returns:
        A ``Result``: ``print(result.table())``, ``result.save(directory)``; with pictures of the
        optimizees if they are images.

    >>> import l2l_tf
    >>> rule = l2l_tf.update_rules.SGD(learning_rate=0.01)
    >>> problem = l2l_tf.problems.get("quadratic")
    >>> result = evaluate(problem, {"mine": rule}, ["sgd"], num_steps=10, num_seeds=2)
    >>> sorted(result.optimizers)
    ['mine', 'sgd']
    """
    if num_steps < 2 or num_seeds < 1:
        raise ValueError(
            "`num_steps` must be at least 2 and `num_seeds` at least 1. "
            f"Received: num_steps={num_steps}, num_seeds={num_seeds}"
        )
    baselines_lib.check_names(baselines)
    if not isinstance(optimizers, dict):
        optimizers = {str(name).rstrip("/"): name for name in optimizers}
    both = sorted(set(optimizers) & set(baselines))
    if both:
        raise ValueError(f"Optimizers and baselines must have different names. Received: {both}")
    rules = {
        name: rule if hasattr(rule, "update") else saving.load(rule)
        for name, rule in optimizers.items()
    }

    if num_tuning_seeds is None:
        num_tuning_seeds = max(num_seeds, 1024) if problem.vectorized else num_seeds
    arena = Arena(problem, num_steps, side, seed)
    tuned = {name: baselines_lib.tune(name, arena, num_tuning_seeds) for name in baselines}
    rules.update({name: baseline.rule for name, baseline in tuned.items()})
    runners = {name: arena.runner(rule) for name, rule in rules.items()}
    runs = {n: arena.losses_and_parameters(r, "report", num_seeds) for n, r in runners.items()}
    seconds = arena.seconds_per_step(runners)
    result = Result(
        problem=problem.name,
        num_steps=num_steps,
        num_seeds=num_seeds,
        optimizers={
            name: {
                "learning_rate": tuned[name].learning_rate if name in tuned else None,
                "grid": tuned[name].grid if name in tuned else None,
                "loss": runs[name][0],
                "seconds_per_step": seconds[name],
            }
            for name in rules
        },
    )
    if problem.picture is not None:
        batches = arena.first_batches("report", num_seeds)
        parameters = {name: parameters for name, (_, parameters) in runs.items()}
        result.pictures = picture_rows(problem, batches, parameters, result)
    return result
