"""Trains by Tensor2Tensor's own graph, losses and optimisers, deterministically, and goes on where it was stopped.

In: records made by the problem. Out: checkpoints, TensorBoard summaries, and lines of JSON on stdout that say how far it
is. The batch of a step depends on the seed and the step alone, so that a run that was killed and resumed ends as one
that was not. It exports nothing (`export.py` does).
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import tensorflow
import tensorflow.compat.v1 as tf
from tensor2tensor import models as _register_models  # noqa: F401 (importing it registers the models)
from tensor2tensor.utils import hparams_lib, learning_rate, optimize, registry

from . import summaries
from .problem import split
from .shape import ROW, WINDOW

PROBLEM = "grid_pmu"
DATAGEN_SEED = 429459
"""What `t2t-datagen` seeds the shuffling of records with."""
EVALUATE_EVERY = 50
"""Steps from one evaluation, checkpoint and summary to the next."""
PATIENCE = 6
"""Evaluations without a better one after which training stops."""
KEEP = "model.ckpt"
BEST = "best"
PROGRESS = "progress.json"


def say(event, **words):
    """Tell whoever started this how far it is."""
    print(json.dumps({"event": event, **words}), flush=True)  # noqa: T201 (stdout is the channel)


def generate(data_dir, tmp_dir):
    """Write the records, as `t2t-datagen` does; leave them where they are complete."""
    done = Path(data_dir) / "complete"
    if done.exists():
        return
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    random.seed(DATAGEN_SEED)
    np.random.seed(DATAGEN_SEED)  # noqa: NPY002 (what t2t-datagen seeds)
    registry.problem(PROBLEM).generate_data(str(data_dir), str(tmp_dir))
    done.write_text("")


def hyperparameters(hparams_set, overrides, data_dir):
    """Make the hyperparameters of a registered set, as `t2t-trainer` would."""
    return hparams_lib.create_hparams(hparams_set, overrides, data_dir=str(data_dir), problem_name=PROBLEM)


def examples(data_dir, mode, hp):
    """Read all windows of a split: `(n, WINDOW, ROW)`, in the order of the files."""
    with tf.Graph().as_default(), tf.Session() as session:
        dataset = registry.problem(PROBLEM).dataset(mode, str(data_dir), hparams=hp, shuffle_files=False, num_threads=1)
        batches = tf.data.make_one_shot_iterator(dataset.batch(64)).get_next()["targets"]
        out = [np.zeros((0, WINDOW, ROW), np.float32)]
        while True:
            try:
                out.append(session.run(batches)[:, :, 0])
            except tf.errors.OutOfRangeError:
                return np.concatenate(out)


class Stream:
    """The batches of a run: each epoch another permutation, drawn from seed and epoch alone."""

    def __init__(self, windows, batch, seed):
        self.windows, self.batch, self.seed = windows, batch, seed
        self.per_epoch = max(1, len(windows) // batch)

    def __getitem__(self, step):
        """Take the batch of a step."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.RandomState([self.seed, epoch]).permutation(len(self.windows))
        return self.windows[order[place * self.batch : (place + 1) * self.batch]]


def build(model_name, hp, mode, targets):
    """Make the model's graph: outputs, loss."""
    model = registry.model(model_name)(hp, mode, hp.problem_hparams)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        out, losses = model({"targets": targets[:, :, None]})
    return out, losses["training"]


def train(*, model_name, hparams_set, overrides, data_dir, out_dir, steps, seed, known):
    """Train until the steps are done or nothing improves; resume from the newest checkpoint."""
    mode = tf.estimator.ModeKeys
    hp = hyperparameters(hparams_set, overrides, data_dir)
    steps = steps or hp.learning_rate_decay_steps
    hp.learning_rate_decay_steps = steps
    windows, held_out = (examples(data_dir, m, hp) for m in (mode.TRAIN, mode.EVAL))
    say("records", train=len(windows), eval=len(held_out), window=WINDOW, row=ROW)
    batches = Stream(windows, min(hp.batch_size, len(windows)), seed)
    os.makedirs(out_dir, exist_ok=True)
    progress = Path(out_dir) / PROGRESS
    tensorflow.config.experimental.enable_op_determinism()
    with tf.Graph().as_default():
        tf.set_random_seed(seed)
        x = tf.placeholder(tf.float32, [None, WINDOW, ROW], "rows")
        _, loss = build(model_name, hp, mode.TRAIN, x)
        step = tf.train.get_or_create_global_step()
        operation = optimize.optimize(loss, learning_rate.learning_rate_schedule(hp), hp)
        out, eval_loss = build(model_name, hyperparameters(hparams_set, overrides, data_dir), mode.EVAL, x)
        mean, spread, wanted, weight = split(out, x[:, :, None])
        board = summaries.Board(out_dir, known)
        saver = tf.train.Saver(max_to_keep=2)
        best_saver = tf.train.Saver(tf.trainable_variables(), max_to_keep=1)
        with tf.Session(config=tf.ConfigProto(intra_op_parallelism_threads=2, inter_op_parallelism_threads=1)) as session:
            session.run(tf.global_variables_initializer())
            state = {"best": None, "best_step": 0, "since": 0, "stopped": False}
            newest = tf.train.latest_checkpoint(str(out_dir))
            if newest:
                saver.restore(session, newest)
                state = json.loads(Path(newest + ".json").read_text())
                say("resumed", step=int(session.run(step)))
            else:
                board.graph(session.graph)
            at, recent = int(session.run(step)), []
            while at < steps and not state["stopped"]:
                value, _ = session.run([loss, operation], {x: batches[at]})
                recent.append(float(value))
                at += 1
                if at % EVALUATE_EVERY and at < steps:
                    say("step", step=at, of=steps, loss=float(value))
                    continue
                parts = [
                    (len(rows), *session.run([eval_loss, mean, spread, wanted, weight], {x: rows}))
                    for rows in np.array_split(held_out, max(1, len(held_out) // 64))
                ]
                held = float(np.average([p[1] for p in parts], weights=[p[0] for p in parts]))
                board.evaluation(at, float(np.mean(recent)), held, parts)
                recent = []
                if state["best"] is None or held < state["best"]:
                    state.update(best=held, best_step=at, since=0)
                    best_saver.save(session, str(Path(out_dir) / BEST), write_meta_graph=False, latest_filename="best.latest")
                else:
                    state["since"] += 1
                    state["stopped"] = state["since"] >= PATIENCE
                # The state goes before the checkpoint that counts: one is never found without the other.
                path = str(Path(out_dir) / KEEP)
                Path(f"{path}-{at}.json").write_text(json.dumps(state))
                saver.save(session, path, global_step=at, write_meta_graph=False)
                say("evaluation", step=at, of=steps, loss=float(value), held_out=held, best=state["best"])
            progress.write_text(json.dumps({"steps": at, **state}))
            board.close(session)
    say("trained", steps=at, stopped_early=state["stopped"], best=state["best"], best_step=state["best_step"])
