"""Writes the records that training reads, and reads them again.

In: `train`, `eval` and `test` folders of `*.npy`. Out: Tensor2Tensor's files of `tf.Example`, byte for byte those of
`t2t-datagen`; and from these the windows, as arrays. It decides nothing about them (the problem does).
"""

import hashlib
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow.compat.v1 as tf
from numpy.typing import NDArray
from tensor2tensor.data_generators.problem import DatasetSplit
from tensor2tensor.utils import registry

from .errors import TrainingError
from .progress import say
from .shape import ROW, WINDOW

PROBLEM = "grid_pmu"
DATAGEN_SEED = 429459
"""What `t2t-datagen` seeds the shuffling of records with."""
COMPLETE = "complete"
"""Written last: holds the fingerprint of what the records were made from."""

Split = Literal["train", "eval", "test"]


def generate(data_dir: Path, tmp_dir: Path) -> None:
    """Write the records; leave them where they are complete and made from the same rows.

    Parameters
    ----------
    data_dir
        Where they go.
    tmp_dir
        Holds the folders of rows.
    """
    done, source = data_dir / COMPLETE, _fingerprint(tmp_dir)
    made = not done.exists() or done.read_text() != source
    if made:
        # Tensor2Tensor would take up what a killed run left, and shuffle the rest otherwise.
        done.unlink(missing_ok=True)
        for left in data_dir.glob(f"{PROBLEM}-*"):
            left.unlink()
        data_dir.mkdir(parents=True, exist_ok=True)
        random.seed(DATAGEN_SEED)
        np.random.seed(DATAGEN_SEED)  # noqa: NPY002 - what t2t-datagen seeds
        registry.problem(PROBLEM).generate_data(str(data_dir), str(tmp_dir))
        done.write_text(source)
    files = sorted(data_dir.glob(f"{PROBLEM}-*"))
    say("generated", files=len(files), bytes=sum(f.stat().st_size for f in files), again=made, sha256=source)


def windows(data_dir: Path, split: Split, hp: Any) -> NDArray[np.float32]:
    """Read all windows of a split.

    Parameters
    ----------
    data_dir
        Where the records are.
    split
        Which.
    hp
        From `graph.hyperparameters`.

    Returns
    -------
    NDArray[np.float32]
        `(n, WINDOW, ROW)`, in the order of the files.

    Raises
    ------
    TrainingError
        If there are none, or they are not this problem's.
    """
    mode = tf.estimator.ModeKeys.EVAL
    which = {"train": DatasetSplit.TRAIN, "eval": DatasetSplit.EVAL, "test": DatasetSplit.TEST}[split]
    problem = registry.problem(PROBLEM)
    pattern = problem.filepattern(str(data_dir), which)
    if not tf.gfile.Glob(pattern):
        raise TrainingError(f"{data_dir} holds no {split} records ({pattern}): run generate first")
    out = []
    with tf.Graph().as_default(), tf.Session() as session:
        dataset = problem.dataset(
            mode, str(data_dir), hparams=hp, shuffle_files=False, num_threads=1, dataset_split=which
        )
        batches = tf.data.make_one_shot_iterator(dataset.batch(64)).get_next()["targets"]
        while True:
            try:
                out.append(session.run(batches)[:, :, 0])
            except tf.errors.OutOfRangeError:
                break
            except tf.errors.OpError as error:
                raise TrainingError(
                    f"{data_dir}: the {split} records cannot be read: {error.message}: delete them and run generate"
                ) from error
    if not out:
        raise TrainingError(
            f"{data_dir}: the {split} records are empty; give longer stretches of {WINDOW} rows and more"
        )
    if out[0].shape[1:] != (WINDOW, ROW):
        raise TrainingError(
            f"{data_dir}: {split} records are {out[0].shape[1:]}, not {(WINDOW, ROW)}: run generate anew"
        )
    return np.concatenate(out)


def _fingerprint(tmp_dir: Path) -> str:
    """Digest of the rows' files, names and contents."""
    digest = hashlib.sha256(f"{WINDOW} {ROW}".encode())
    for path in sorted(tmp_dir.glob("*/*.npy")):
        digest.update(path.relative_to(tmp_dir).as_posix().encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
