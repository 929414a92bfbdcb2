"""Trains by Tensor2Tensor's own graph, losses and optimisers, deterministically, and goes on where it was stopped.

In: records made by the problem. Out: checkpoints, TensorBoard summaries, and lines of JSON on stdout that say how far
it is. The batch of a step depends on the seed and the step alone, and what early stopping remembers stands in the
checkpoint itself: a run that was killed and resumed ends with the bits of one that was not, on the same machine's CPU.
(A set with dropout, which ours are not, would end otherwise: TensorFlow does not store its generators.) It exports
nothing (`export.py` does) and uses one device: for several, see `hyperparameters.py`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from numpy.typing import NDArray
from tensor2tensor.utils import learning_rate, optimize
from tensorflow import config, keras

from .errors import TrainingError
from .graph import build, hyperparameters
from .problem import split
from .progress import say
from .records import windows
from .shape import ROW, WINDOW
from .summaries import Board

EVALUATE_EVERY = 50
"""Steps from one evaluation, checkpoint and summary to the next."""
PATIENCE = 6
"""Evaluations without a better one after which training stops."""
AT_ONCE = 64
"""Windows evaluated together."""
CHECKPOINT, BEST = "model.ckpt", "best"
THREADS = tf.ConfigProto(intra_op_parallelism_threads=2, inter_op_parallelism_threads=1)
"""Of any machine: another number may add in another order."""
RUN, ENDED = "run.json", "ended.json"
"""What a run was begun with, and how it ended."""


@dataclass(frozen=True)
class Run:
    """What a run depends on, besides the records.

    Attributes
    ----------
    model
        Tensor2Tensor's name of it.
    hparams_set
        A registered set.
    overrides
        `name=value`, separated by commas.
    steps
        How many at most; 0 for as many as the set's learning rate takes to decay.
    seed
        Of first weights and batches.
    evaluate_every
        Steps.
    """

    model: str
    hparams_set: str
    overrides: str
    steps: int
    seed: int
    evaluate_every: int = EVALUATE_EVERY


@dataclass
class Standing:
    """What early stopping remembers.

    Attributes
    ----------
    best
        The smallest held-out loss so far.
    best_step
        When that was.
    since
        Evaluations since.
    """

    best: float = np.inf
    best_step: int = 0
    since: int = 0

    def take(self, step: int, loss: float) -> bool:
        """Take an evaluation in.

        Parameters
        ----------
        step
            When.
        loss
            Held-out.

        Returns
        -------
        bool
            Whether it is the best so far.
        """
        if loss < self.best:
            self.best, self.best_step, self.since = loss, step, 0
            return True
        self.since += 1
        return False


class Batches:
    """The batches of a run: each epoch another permutation, drawn from seed and epoch alone.

    Parameters
    ----------
    examples
        `(n, WINDOW, ROW)`.
    size
        Of a batch.
    seed
        Of the permutations.
    """

    def __init__(self, examples: NDArray[np.float32], size: int, seed: int) -> None:
        self._examples, self._size, self._seed = examples, min(size, len(examples)), seed

    def __getitem__(self, step: int) -> NDArray[np.float32]:
        """Take the batch of a step."""
        epoch, place = divmod(step, len(self._examples) // self._size)
        order = np.random.RandomState([self._seed, epoch]).permutation(len(self._examples))
        return self._examples[order[place * self._size : (place + 1) * self._size]]


def train(run: Run, *, data_dir: Path, out_dir: Path, known: Path | None) -> None:
    """Train until the steps are done or nothing improves; resume from the newest checkpoint that can be read.

    Parameters
    ----------
    run
        What to train.
    data_dir
        Where the records are.
    out_dir
        Where checkpoints and summaries go.
    known
        Holds stretches of rows with labels, for the embedding projector.

    Raises
    ------
    TrainingError
        If the records, the run's folder or what is known do not fit, or training diverges.
    """
    hp = hyperparameters(run.hparams_set, run.overrides, data_dir)
    steps = run.steps or hp.learning_rate_decay_steps
    hp.learning_rate_decay_steps = steps
    examples, held_out = windows(data_dir, "train", hp), windows(data_dir, "eval", hp)
    say("records", train=len(examples), eval=len(held_out), window=WINDOW, row=ROW)
    out_dir.mkdir(parents=True, exist_ok=True)
    _begin(out_dir, run, examples)
    batches = Batches(examples, hp.batch_size, run.seed)
    config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(run.seed)
    measure = _HeldOut(run, data_dir, held_out)
    with tf.Graph().as_default():
        tf.set_random_seed(run.seed)
        rows = tf.placeholder(tf.float32, [None, WINDOW, ROW], "rows")
        loss = build(run.model, hp, tf.estimator.ModeKeys.TRAIN, rows).loss
        at = tf.train.get_or_create_global_step()
        # Fed, else some steps take the next one's rate: under TensorFlow 2 Tensor2Tensor counts the step up while it
        # reads it, in an order that is another one each time the program starts.
        scheduled = tf.convert_to_tensor(learning_rate.learning_rate_schedule(hp))
        rate = tf.placeholder(tf.float32, [], "learning_rate")
        operation = optimize.optimize(loss, rate, hp)
        weights = {variable.op.name: variable for variable in tf.trainable_variables()}
        best_saver, checkpoints = tf.train.Saver(weights), _Checkpoints(out_dir)
        with tf.Session(config=THREADS) as session:
            standing = checkpoints.restore(session)
            step = int(session.run(at))
            board = Board(out_dir, session.graph, step)
            recent: list[float] = []
            while step < steps and standing.since < PATIENCE:
                value, _ = session.run([loss, operation], {rows: batches[step], rate: session.run(scheduled)})
                recent.append(float(value))
                step += 1
                if step % run.evaluate_every and step < steps:
                    say("step", step=step, of=steps, loss=recent[-1])
                    continue
                held, parts = measure(session.run(weights))
                if not np.isfinite(held):
                    raise TrainingError(f"the held-out loss is {held} at step {step}: lower the learning rate")
                board.evaluation(step, float(np.mean(recent)), held, parts)
                # The best weights first, then the checkpoint: a run that is killed between the two resumes before both
                # and writes the very same again.
                if standing.take(step, held):
                    best_saver.save(session, str(out_dir / BEST), write_meta_graph=False, write_state=False)
                checkpoints.save(session, standing, step)
                say("evaluation", step=step, of=steps, loss=recent[-1], held_out=held, **asdict(standing))
                recent.clear()
    if known is not None:
        board.known_events(run, known, data_dir, out_dir / BEST)
    board.close()
    ended = {"steps": step, "stopped_early": step < steps, **asdict(standing)}
    _write(out_dir / ENDED, ended)
    say("trained", **ended)


class _HeldOut:
    """The evaluation split under given weights.

    It has a graph of its own: built twice in one, Tensor2Tensor's transformer makes new weights under TensorFlow 2,
    whatever is said of reuse.
    """

    def __init__(self, run: Run, data_dir: Path, examples: NDArray[np.float32]) -> None:
        self._examples = examples
        with tf.Graph().as_default() as graph:
            tf.set_random_seed(run.seed)  # nothing is drawn; determinism asks for it
            self._rows = tf.placeholder(tf.float32, [None, WINDOW, ROW])
            hp = hyperparameters(run.hparams_set, run.overrides, data_dir)
            network = build(run.model, hp, tf.estimator.ModeKeys.EVAL, self._rows)
            self._answers = (network.loss, *split(network.raw, self._rows[:, :, None]))
            variables = {variable.op.name: variable for variable in tf.trainable_variables()}
            self._values = {name: tf.placeholder(v.dtype.base_dtype, v.shape) for name, v in variables.items()}
            self._assign = [variables[name].assign(value) for name, value in self._values.items()]
        self._session = tf.Session(graph=graph, config=THREADS)

    def __call__(self, weights: dict[str, NDArray[np.float32]]) -> tuple[float, tuple[NDArray[np.float32], ...]]:
        """Return the loss, and means, logarithms of spreads, targets and weights of the answers."""
        if set(weights) != set(self._values):
            raise TrainingError(f"the model has other weights when it is evaluated: {set(weights) ^ set(self._values)}")
        self._session.run(self._assign, {place: weights[name] for name, place in self._values.items()})
        every = range(0, len(self._examples), AT_ONCE)
        found = [self._session.run(self._answers, {self._rows: self._examples[n : n + AT_ONCE]}) for n in every]
        loss = float(np.average([part[0] for part in found], weights=[len(part[1]) for part in found]))
        return loss, tuple(np.concatenate([part[i] for part in found]) for i in range(1, len(self._answers)))


class _Checkpoints:
    """Weights, the optimiser's moments, step and standing, in one checkpoint, which is there or not.

    TensorFlow writes to other names, renames, and only then lets the file `checkpoint` point there.
    """

    def __init__(self, out_dir: Path) -> None:
        self._out_dir = out_dir
        self._standing = tf.get_variable("standing", initializer=np.zeros(3), trainable=False)
        self._value = tf.placeholder(tf.float64, [3])
        self._assign = self._standing.assign(self._value)
        self._saver = tf.train.Saver(max_to_keep=2)

    def restore(self, session: Any) -> Standing:
        """Go on from the newest that can be read; else begin."""
        found = tf.train.get_checkpoint_state(str(self._out_dir))
        paths = list(found.all_model_checkpoint_paths) if found else []
        while paths:
            try:
                self._saver.restore(session, paths[-1])
            except (ValueError, tf.errors.OpError) as error:
                say("damaged", checkpoint=paths.pop(), reason=type(error).__name__)
                continue
            self._saver.recover_last_checkpoints(paths)
            best, best_step, since = session.run(self._standing).tolist()
            say("resumed", step=int(session.run(tf.train.get_global_step())))
            return Standing(best, int(best_step), int(since))
        session.run(
            tf.global_variables_initializer()
        )  # once: the generators of first weights go on, each time it is run
        return Standing()

    def save(self, session: Any, standing: Standing, step: int) -> None:
        """Write one more; the oldest goes."""
        session.run(self._assign, {self._value: [standing.best, standing.best_step, standing.since]})
        self._saver.save(session, str(self._out_dir / CHECKPOINT), global_step=step, write_meta_graph=False)


def _begin(out_dir: Path, run: Run, examples: NDArray[np.float32]) -> None:
    """Refuse to go on with another run's weights; it has not ended from here on."""
    said = {**asdict(run), "records_sha256": hashlib.sha256(examples.data).hexdigest()}
    path = out_dir / RUN
    if not path.exists():
        _write(path, said)
    begun = json.loads(path.read_text())
    other = [f"{key} {begun.get(key)!r} instead of {said[key]!r}" for key in said if begun.get(key) != said[key]]
    if other:
        raise TrainingError(
            f"{out_dir} was begun with {', '.join(other)}: go on with the same, or name another folder for this run"
        )
    (out_dir / ENDED).unlink(missing_ok=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
