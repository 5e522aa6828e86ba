"""Meta-trainings that are stopped, killed, run twice at a time, or find the disk full."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from test_command_line import SMALL, command, started

import l2l_tf
from l2l_tf import command_line, update_rules
from l2l_tf.files import lock
from l2l_tf.meta_training import save_directory, stop
from l2l_tf.meta_training.callbacks import SaveCheckpoint
from l2l_tf.meta_training.progress import position
from l2l_tf.meta_training.run import meta_train
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.problems import Mixture, Quadratic, Simple

LOCK = pathlib.Path(lock.__file__)


def mixture():
    return Mixture([(Quadratic(3), 1.0), (Simple(2), 1.0)])


def trainer(problem=None, **options):
    rule = update_rules.CoordinatewiseLSTM((4,), seed=0)
    return MetaTrainer(rule, problem or Quadratic(3), 5, 10, **options)


class Run(tuple):
    """A trainer and its card; of some, where it is and what it printed."""


def run(save_dir, trainer_=None, **options):
    """Three epochs of eight episodes."""
    trainer_ = trainer_ or trainer()
    options = {"num_episodes": 24, "validate_every": 8, "verbose": 0, **options}
    options |= {"meta_learning_rate": 0.01, "num_validation_episodes": 2}
    return Run([trainer_, meta_train(trainer_, save_dir, **options)])


def assert_same(a, b):
    """Of two runs: weights, records and best rules, bit for bit."""
    (trainer_a, card_a), (trainer_b, card_b) = a, b
    for of_a, of_b in zip(trainer_a.rule.weights, trainer_b.rule.weights, strict=True):
        np.testing.assert_array_equal(of_a, of_b)
    for of_a, of_b in zip(trainer_a.optimizer.variables, trainer_b.optimizer.variables):
        np.testing.assert_array_equal(of_a, of_b)
    names = ("validation", "best", "diverged")
    assert [card_a[name] for name in names] == [card_b[name] for name in names]


def at_call(monkeypatch, method, number, action):
    """Does `action` before a call of a method of MetaTrainer."""
    original, calls = getattr(MetaTrainer, method), iter(range(10**6))

    def called(self, *args):
        if next(calls) == number:
            action()
        return original(self, *args)

    monkeypatch.setattr(MetaTrainer, method, called)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    whole = run(save_dir := tmp_path_factory.mktemp("whole"))
    whole.save_dir = save_dir
    return whole


@pytest.fixture(scope="module")
def whole_mixture(tmp_path_factory):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        whole = run(tmp_path_factory.mktemp("whole"), trainer(mixture()), verbose=2)
    whole.text = text.getvalue()
    return whole


STOPS = {
    "within an epoch": ("meta_step", 21, signal.SIGTERM, mixture),
    "by Ctrl-C": ("meta_step", 5, signal.SIGINT, None),
    "at a validation": ("validate", 1, signal.SIGTERM, None),
}


@pytest.mark.parametrize(
    "name", [pytest.param("within an epoch", marks=pytest.mark.slow), *list(STOPS)[1:]]
)
def test_stopped_and_resumed_equals_undisturbed(name, request, tmp_path, monkeypatch, capfd):
    method, number, sent, problem = STOPS[name]
    whole = request.getfixturevalue("whole_mixture" if problem else "whole")
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stopped = trainer(problem and problem())
    with monkeypatch.context() as patch:
        at_call(patch, method, number, lambda: (os.kill(os.getpid(), sent), time.sleep(0.5)))
        with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
            run(tmp_path, stopped)
    episode = int(stopped.episode.numpy())
    what = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}[sent]
    line = f"\n{what}; the same call resumes after episode {episode}\n"
    assert line in capfd.readouterr().err
    assert (caught.type is KeyboardInterrupt) == (sent == signal.SIGINT)
    assert sent == signal.SIGINT or caught.value.code == 75
    assert episode == (16 if method == "validate" else number // 2 + 1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    before = l2l_tf.card(tmp_path)["seconds"]
    resumed = run(tmp_path, trainer(problem and problem()))
    assert_same(resumed, whole)
    assert resumed[1]["seconds"] > before > 0


class Killed(BaseException):
    pass


def kill():
    raise Killed


@pytest.mark.slow
def test_a_kill_loses_no_more_than_since_the_last_checkpoint(whole, tmp_path, monkeypatch):
    reached = []
    for number in (9, 25):  # meta-steps of each process
        trainer_ = trainer()
        with monkeypatch.context() as patch:
            at_call(patch, "meta_step", number, kill)
            with pytest.raises(Killed):
                run(tmp_path, trainer_, checkpoint_seconds=0)
        reached.append(int(trainer_.episode.numpy()))
    assert reached == [4, 16]  # of two meta-steps each; one that was half done is done again
    assert_same(run(tmp_path), whole)


def test_checkpoints_are_some_time_apart(monkeypatch):
    now, saves = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("l2l_tf.meta_training.callbacks.time", clock)
    manager = types.SimpleNamespace(save=lambda: saves.append(now[0]), directory="x")
    quiet = types.SimpleNamespace(take_over=lambda: None, signal=None)
    callback = SaveCheckpoint(manager, 600.0, quiet)
    model = trainer()
    callback.set_model(model)
    callback.on_epoch_begin(0)
    for now[0] in (*range(0, 1300, 4), 1310, 1314):
        model._carries = [None if now[0] % 8 == 0 or now[0] > 1300 else ()]
        monkeypatch.setattr("l2l_tf.meta_training.callbacks.LONG_EPISODE", 9.0)
        callback.on_train_batch_end(0)
    callback.on_epoch_end(0)
    # When 600 seconds have passed, at an episode's end; after a long one; after the epoch.
    assert saves == [608, 1216, 1310, 1314]


@pytest.mark.parametrize(
    "episode, is_validated, expected",
    [
        (0, False, (0, 0)),
        (3, False, (0, 6)),
        (8, False, (0, 16)),
        (8, True, (1, 0)),
        (15, True, (1, 14)),
        (24, False, (2, 16)),
        (24, True, (3, 0)),
    ],
)
def test_where_it_goes_on(episode, is_validated, expected):
    assert position(episode, 8, 16, is_validated) == expected


@pytest.mark.slow
def test_a_checkpoint_of_before_there_was_progress(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        checkpoint = tf.train.Checkpoint
        patch.setattr(tf.train, "Checkpoint", lambda progress=None, **of: checkpoint(**of))
        at_call(patch, "meta_step", 20, kill)
        with pytest.raises(Killed):
            run(tmp_path)
    assert_same(run(tmp_path), whole)


# A command in an episode that does not end.
ENDLESS = f"""
import importlib.util, os, runpy, signal, sys, time

def module(path):
    spec = importlib.util.spec_from_file_location("module", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded

stop = module({stop.__file__!r})
stop.GRACE = float(sys.argv[1])
runpy.run_path({command_line.__file__!r})["end_at_signals"]("bin/x", "; once more")
stopping = stop.Stop()
stopping.take_over()
for number in map(int, sys.argv[2:]):
    os.kill(os.getpid(), number)
    time.sleep(0.3)
assert stopping.signal == int(sys.argv[2])
stopping.give_back()
os.kill(os.getpid(), signal.SIGTERM)  # again as the command has it
time.sleep(60)
"""


@pytest.mark.parametrize(
    "grace, signals, code, line",
    [
        (0.1, [signal.SIGTERM], 75, "stopped by SIGTERM; the same command resumes from the last"),
        (0.1, [signal.SIGINT], 130, "interrupted; the same command resumes from the last"),
        (60, [signal.SIGINT] * 2, 130, "interrupted; the same command resumes from the last"),
        (60, [signal.SIGTERM] * 2, 75, "stopped by SIGTERM; once more"),
    ],
)
def test_the_time_to_exit_is_bounded(grace, signals, code, line):
    numbers = [str(int(number)) for number in signals]
    program = [sys.executable, "-c", ENDLESS, str(grace), *numbers]
    done = subprocess.run(program, capture_output=True, text=True, timeout=50)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 2 and done.stderr.startswith(f"\nbin/x: {line}")


HOLDER = f"""
import runpy, sys, time
with runpy.run_path({str(LOCK)!r})["held"](sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(whole, tmp_path):
    shutil.copytree(whole.save_dir, tmp_path, dirs_exist_ok=True)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        message = f"is held by process {holder.pid} on .* since 20.*one process at a time"
        with pytest.raises(BlockingIOError, match=message):
            run(tmp_path)
        assert l2l_tf.load(tmp_path) is not None and l2l_tf.card(tmp_path)["best"]
        after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}
        assert after == before
    finally:
        holder.kill()
        holder.communicate()
    with lock.held(tmp_path):
        with pytest.raises(BlockingIOError, match=f"held by process {os.getpid()} "):
            run(tmp_path)


def test_a_lock_alone_is_no_other_thing_and_no_link_is_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lock").write_text("")  # killed before the card was written
    with save_directory.held(str(tmp_path / "a"), {}) as card:
        assert card["best"] is None
    (tmp_path / "a" / "lock").unlink()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lock"):
        with save_directory.held(str(tmp_path / "a"), {}):
            pass
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes").write_text("")
    with pytest.raises(FileExistsError, match="holds something else"):
        run(tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["notes"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("l2l_tf.files.lock.fcntl.flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked .Operation not supported"):
        with lock.held(tmp_path):
            pass


FULL = tf.errors.ResourceExhaustedError(
    None, None, "{{function_node f}} x; No space left on device"
)


@pytest.mark.parametrize(
    "target, message",
    [
        ("tensorflow.train.CheckpointManager.save", "checkpoints': x; No space left on device"),
        pytest.param("tensorflow.saved_model.save", "rule-16': x; No", marks=pytest.mark.slow),
        pytest.param("tensorflow.io.gfile.rename", "card.json': x; No", marks=pytest.mark.slow),
        pytest.param(
            "keras.callbacks.TensorBoard.on_epoch_end", "logs': x; No", marks=pytest.mark.slow
        ),
    ],
)
def test_a_full_disk_is_said_and_nothing_is_lost(target, message, whole, tmp_path, monkeypatch):
    def full(*_, **__):
        raise FULL

    with monkeypatch.context() as patch:
        at_call(patch, "meta_step", 17, lambda: patch.setattr(target, full))
        with pytest.raises(OSError, match=f"Cannot write .*{message}.*Make room there"):
            run(tmp_path)
    assert l2l_tf.card(tmp_path)["best"] in ("rule-8", "rule-16")
    assert l2l_tf.load(tmp_path) is not None
    assert_same(run(tmp_path), whole)
    left = [path.name for path in tmp_path.rglob("*") if "writing" in path.name]
    assert left == []


class Diverging(Quadratic):
    """Not finite from its `step` on, in some of the episodes."""

    def batches(self, side, seed, num_batches):
        bad = seed[0] % 4 == 0

        def of_step(step, coefficients):
            is_bad = bad & (step >= 7)
            return tf.nest.map_structure(lambda c: tf.where(is_bad, np.nan, c), coefficients)

        return super().batches(side, seed, num_batches).enumerate().map(of_step)


@pytest.mark.filterwarnings("ignore:An optimizee diverged")
def test_who_diverged_is_in_the_card_however_often_it_is_stopped(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", trainer(Diverging(3), max_diverged=0.9))
    diverged = whole[1]["diverged"]
    assert 0 < diverged["count"] < 24
    # Each window of five steps has six batches.
    assert diverged["first"][0]["step"] == 6 and diverged["first"][0]["problem"] == "quadratic"
    with monkeypatch.context() as patch:
        at_call(patch, "meta_step", 26, kill)
        with pytest.raises(Killed):
            trainer_ = trainer(Diverging(3), max_diverged=0.9)
            run(tmp_path / "b", trainer_, checkpoint_seconds=0)
    assert_same(run(tmp_path / "b", trainer(Diverging(3), max_diverged=0.9)), whole)


@pytest.mark.filterwarnings("ignore:An optimizee diverged")
def test_too_many_that_diverge_end_a_run_which_can_be_repeated(tmp_path):
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="more than max_diverged=1%"):
            run(tmp_path, trainer(Diverging(3), credit="episode", max_diverged=0.01))
        assert l2l_tf.card(tmp_path)["diverged"]["count"] > 0


def test_of_a_mixture_the_best_is_that_of_the_lowest_objective(whole_mixture):
    _, card = whole_mixture
    for record in card["validation"]:
        by_problem = record["by_problem"]
        assert list(by_problem) == ["quadratic", "simple-multi"]
        objectives = {name: of["objective"] for name, of in by_problem.items()}
        np.testing.assert_allclose(record["val_objective"], np.mean([*objectives.values()]), 1e-5)
        worst = max(objectives, key=objectives.get)
        assert record["worst"] == {"problem": worst, "objective": objectives[worst]}
    best = min(card["validation"], key=lambda record: record["val_objective"])
    assert card["best"] == f"rule-{best['episodes']}"
    assert card["best_validation_objective"] == best["val_objective"]
    assert card["best_validation_loss"] is None
    last = card["validation"][-1]
    line = f"After 24 episodes: objective {last['val_objective']}, worst on "
    line += f"{last['worst']['problem']}: {last['worst']['objective']}\n"
    assert line in whole_mixture.text


@pytest.mark.slow
def test_sigterm_of_the_command(tmp_path):
    flags = [*SMALL, "--num_episodes=2000", "--validate_every=500", "--noevaluate"]
    flags += [f"--save_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        command("meta_train", *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    card = tmp_path / "run" / "card.json"
    assert started(process, lambda: card.exists() and json.loads(card.read_text())["validation"])
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    print(f"{time.monotonic() - start:.2f} s from SIGTERM to the end")
    assert process.returncode == 75
    lines = [line for line in errors.splitlines() if line and "0000 00:00" not in line]
    line = "bin/meta_train: stopped by SIGTERM; the same command resumes after episode "
    assert lines[-1].startswith(line) and "Traceback" not in errors
    assert 500 <= int(lines[-1].removeprefix(line)) < 2000


@pytest.mark.slow
def test_files_that_cannot_grow(tmp_path):
    """As a full disk: each of these limits is met by another file."""
    flags = ["--layers=64", *SMALL[1:], "--num_episodes=120", "--validate_every=20", "--noevaluate"]
    whole, full = ([*flags, f"--save_dir={tmp_path / name}"] for name in ("whole", "full"))
    subprocess.run(command("meta_train", *whole), check=True, capture_output=True)
    said = set()
    for size in (400, 20000, 150000):
        program = (
            f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size},) * 2)"
        )
        program += "; os.execv(sys.executable, sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", program, *command("meta_train", *full)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, (size, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("bin/meta_train:")]
        assert len(lines) == 1 and "Cannot write" in lines[0] and "Make room there" in lines[0]
        assert "Traceback" not in done.stderr
        said.add(lines[0].split("'")[1].removeprefix(f"{tmp_path}/full"))
        if (tmp_path / "full" / "card.json").exists():
            if l2l_tf.card(tmp_path / "full")["best"]:
                l2l_tf.load(tmp_path / "full")
    print(said)
    assert {"/card.json", "/checkpoints"} <= said
    subprocess.run(command("meta_train", *full), check=True, capture_output=True)
    assert_equal_directories(tmp_path / "whole", tmp_path / "full")


def assert_equal_directories(a, b):
    cards = [l2l_tf.card(path) for path in (a, b)]
    for name in ("validation", "best", "diverged"):
        assert cards[0][name] == cards[1][name]
    readers = [tf.train.load_checkpoint(str(path / "checkpoints")) for path in (a, b)]
    for name in readers[0].get_variable_to_shape_map():
        if name.startswith(("rule/", "optimizer/", "episode/")):
            np.testing.assert_array_equal(*[reader.get_tensor(name) for reader in readers])


# A worker of two, each with an optimizee; the second gets a SIGTERM, or none.
WORKER = """
import json, os, signal, sys
index, port, save_dir, stops = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
cluster = {"worker": [f"localhost:{port}", f"localhost:{port + 1}"]}
os.environ["TF_CONFIG"] = json.dumps(
    {"cluster": cluster, "task": {"type": "worker", "index": index}})
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import l2l_tf
from l2l_tf.meta_training.run import meta_train

rule = l2l_tf.update_rules.CoordinatewiseLSTM((4,), seed=index)
problem = l2l_tf.problems.Quadratic(3)
trainer = l2l_tf.MetaTrainer(rule, problem, 5, 10, meta_batch_size=2, strategy=strategy)
step, calls = trainer.meta_step, iter(range(1000))

def meta_step(groups):
    if next(calls) == 20 and index == 1 and stops == "stops":
        os.kill(os.getpid(), signal.SIGTERM)
    step(groups)

trainer.meta_step = meta_step
card = meta_train(trainer, save_dir, num_episodes=48, validate_every=24, verbose=0,
                  meta_learning_rate=0.01, num_validation_episodes=2)
assert (card is None) == (index == 1)
"""


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_at_the_same_step(tmp_path):
    for name, stops in (("whole", ""), ("run", "stops"), ("run", "")):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = [str(port), str(tmp_path / name), stops]
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, index, *arguments],
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in ("0", "1")
        ]
        errors = [worker.communicate(timeout=300)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [75 if stops else 0] * 2, errors
        ends = [line for text in errors for line in text.splitlines() if "resumes after" in line]
        assert len(ends) == 2 * bool(stops) and len(set(ends)) == bool(stops)
    assert_equal_directories(tmp_path / "whole", tmp_path / "run")


# Meta-trains in processes, one after another, that it kills at random until one comes to its end.
KILLER = """
import contextlib, os, random, signal, sys, time, traceback
import l2l_tf
from l2l_tf.meta_training.run import meta_train

save_dir, num_kills = sys.argv[1], int(sys.argv[2])

def train(writer):
    step = l2l_tf.MetaTrainer.meta_step
    def meta_step(self, groups):
        step(self, groups)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(writer, b"x")
    l2l_tf.MetaTrainer.meta_step = meta_step
    problem = l2l_tf.problems.get("quadratic|simple|rastrigin")
    rule = l2l_tf.update_rules.CoordinatewiseLSTM((4,), seed=0)
    options = dict(num_groups=2, meta_batch_size=2, objective="sum", max_diverged=1.0)
    trainer = l2l_tf.MetaTrainer(rule, problem, 5, 10, **options)
    meta_train(trainer, save_dir, num_episodes=16000, meta_learning_rate=0.01,
               validate_every=800, checkpoint_seconds=0.2, verbose=0)

kills = 0
while True:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    pid = os.fork()  # TensorFlow is imported, but has not done anything
    if pid == 0:
        os.close(reader)
        try:
            train(writer)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    if kills < num_kills:
        if random.random() < 0.8:
            for _ in range(12):  # by then most is compiled
                os.read(reader, 1)
            time.sleep(3 * random.random())
        else:
            time.sleep(8 * random.random())
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reader)
    if status != signal.SIGKILL:
        break
    kills += 1
print(kills, status)
"""


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    """Each loses less than it takes to get there: a checkpoint every 0.2 seconds."""
    for name, num_kills in (("whole", 0), ("killed", 100)):
        program = [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path / name)]
        done = subprocess.run([*program, str(num_kills)], capture_output=True, text=True)
        kills, status = map(int, done.stdout.split()[-2:])
        print(f"{name}: {kills} kills")
        assert status == 0, done.stderr
    assert kills > 30
    assert_equal_directories(tmp_path / "whole", tmp_path / "killed")
    names = {path.name.split("-")[0] for path in (tmp_path / "killed").iterdir()}
    assert names == {"card.json", "checkpoints", "lock", "logs", "rule"}
    print(sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()))
