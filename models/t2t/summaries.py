"""What TensorBoard shows of a run: `tensorboard --logdir OUT_DIR`.

In: losses and predictions of each evaluation. Out: scalars (losses, the error relative to persistence), histograms of
residuals in predicted spreads, examples as pictures, the graph, and for the embedding projector the hidden states of an
LSTM while known events pass. It measures nothing that training depends on.
"""

import io
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow.compat.v1 as tf
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .errors import TrainingError
from .graph import build, hyperparameters
from .progress import say
from .shape import HORIZONS, ROW, SETTLING, SLOTS

Floats = NDArray[np.float32]

FOLDER = "tensorboard"
"""In the run's folder."""
SHOWN = ("frequency", "voltage_magnitude", "active_power")
"""Slots that are drawn."""
BOUNDS = np.linspace(-6, 6, 61)
"""Of the histograms, in predicted spreads; what is farther out counts in the outermost."""
POINTS = 2000
"""At most so many hidden states are projected."""
PANEL = (360, 170)
"""Width and height of a panel, pixels."""
MARGIN = 22
PAPER, FRAME, BAND, MEAN, CAME = "white", "#888888", "#cfe0f5", "#1f5fa8", "#111111"


class Trained(Protocol):
    """What of a run is needed to build its network again."""

    @property
    def model(self) -> str:
        """Tensor2Tensor's name."""

    @property
    def hparams_set(self) -> str:
        """A registered set."""

    @property
    def overrides(self) -> str:
        """Instead of the set's."""


class Board:
    """Writes a run's summaries.

    Parameters
    ----------
    out_dir
        The run's folder.
    graph
        What is trained.
    step
        Where it begins or goes on; what a killed run wrote beyond that is hidden.
    """

    def __init__(self, out_dir: Path, graph: Any, step: int) -> None:
        self._folder = out_dir / FOLDER
        self._writer = tf.summary.FileWriter(str(self._folder))
        if step:
            self._writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)
        else:
            self._writer.add_graph(graph)

    def evaluation(self, step: int, train_loss: float, held_out_loss: float, parts: tuple[Floats, ...]) -> None:
        """Write one evaluation.

        Parameters
        ----------
        step
            When.
        train_loss
            Mean since the last.
        held_out_loss
            Of the evaluation split.
        parts
            Means, logarithms of spreads, targets and weights of that split, each `(n, T, C * K)`.
        """
        mean, spread, wanted, weight = (p.reshape(*p.shape[:2], len(SLOTS), HORIZONS) for p in parts)
        values = [scalar("loss/train", train_loss), scalar("loss/held_out", held_out_loss)]
        for k in range(HORIZONS):
            counts = weight[..., k] > 0
            wrong, moved = (wanted - mean)[..., k][counts], wanted[..., k][counts]
            if not len(wrong):
                continue
            error = np.sqrt(np.mean(wrong**2) / max(np.mean(moved**2), 1e-9))
            values.append(scalar(f"error_over_persistence/horizon_{k + 1}", float(error)))
            residuals = wrong * np.exp(-spread[..., k][counts])
            values.append(tf.Summary.Value(tag=f"residuals_in_spreads/horizon_{k + 1}", histo=histogram(residuals)))
        example = int(weight.sum((1, 2, 3)).argmax())
        drawn = picture(step, mean[example], spread[example], wanted[example], weight[example])
        coded = io.BytesIO()
        drawn.save(coded, "PNG")
        image = tf.Summary.Image(
            width=drawn.width, height=drawn.height, colorspace=3, encoded_image_string=coded.getvalue()
        )
        values.append(tf.Summary.Value(tag="predictions", image=image))
        self._writer.add_summary(tf.Summary(value=values), step)
        self._writer.flush()

    def known_events(self, run: Trained, known: Path, data_dir: Path, checkpoint: Path) -> None:
        """Write hidden states of the LSTM's last layer while known events pass, for the embedding projector.

        Parameters
        ----------
        run
            What was trained; a transformer has no hidden state, and nothing is written of it.
        known
            Holds `NAME.npy`, rows `(T, N, ROW)`, and `NAME.json`, a list of `T` labels.
        data_dir
            Where the records are.
        checkpoint
            Of the weights.

        Raises
        ------
        TrainingError
            If rows and labels do not fit.
        """
        if run.model != "lstm_seq2seq":
            say("projector", points=0, reason=f"{run.model} has no hidden state")
            return
        files = [(path, *_labelled(path)) for path in sorted(known.glob("*.npy"))]
        if not files:
            raise TrainingError(f"{known} holds no *.npy with labels beside them")
        # (file, frame, stream) of every point there could be; a frame is shown after it was seen, so the last is not.
        places = [
            (f, t, n)
            for f, (_, rows, _) in enumerate(files)
            for t in range(len(rows) - 1)
            for n in range(rows.shape[1])
        ]
        labels = np.array([files[f][2][t] for f, t, _ in places])
        chosen = [places[i] for i in balanced(labels)]
        points, metadata = [], ["label\tfile\tstream\tframe"]
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(0)  # nothing is drawn; determinism asks for it
            x = tf.placeholder(tf.float32, [None, None, ROW])
            hp = hyperparameters(run.hparams_set, run.overrides, data_dir)
            hidden = build(run.model, hp, tf.estimator.ModeKeys.EVAL, x).hidden
            tf.train.Saver(tf.trainable_variables()).restore(session, str(checkpoint))
            for f, (path, rows, named) in enumerate(files):
                mine = [(t, n) for g, t, n in chosen if g == f]
                if not mine:
                    continue
                streams = sorted({n for _, n in mine})
                seen = session.run(hidden, {x: rows[:, streams].swapaxes(0, 1)})[:, :, 0]
                for t, n in mine:
                    points.append(seen[streams.index(n), t + 1])
                    metadata.append(f"{named[t]}\t{path.stem}\t{n}\t{t}")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "metadata.tsv").write_text("\n".join(metadata) + "\n")
        # No path of a checkpoint: TensorBoard takes the one beside it, wherever the folder is moved to.
        (self._folder / "projector_config.pbtxt").write_text(
            'embeddings {\n  tensor_name: "hidden_states"\n  metadata_path: "metadata.tsv"\n}\n'
        )
        with tf.Graph().as_default(), tf.Session() as own:
            states = tf.get_variable("hidden_states", initializer=np.stack(points))
            own.run(states.initializer)
            tf.train.Saver([states]).save(own, str(self._folder / "hidden_states.ckpt"), write_meta_graph=False)
        say("projector", points=len(points), labels=sorted(set(labels.tolist())))

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


def scalar(tag: str, value: float) -> Any:
    """Make a scalar summary.

    Parameters
    ----------
    tag
        What it is.
    value
        How much.

    Returns
    -------
    Any
        Of a `tf.Summary`.
    """
    return tf.Summary.Value(tag=tag, simple_value=value)


def histogram(values: Floats) -> Any:
    """Count values within `BOUNDS`.

    Parameters
    ----------
    values
        Any number of them.

    Returns
    -------
    Any
        A `tf.HistogramProto`.
    """
    counts, _ = np.histogram(np.clip(values, BOUNDS[0], BOUNDS[-1]), BOUNDS)
    return tf.HistogramProto(
        min=float(values.min()),
        max=float(values.max()),
        num=len(values),
        sum=float(values.sum(dtype=np.float64)),
        sum_squares=float(np.square(values, dtype=np.float64).sum()),
        bucket_limit=BOUNDS[1:].tolist(),
        bucket=counts.tolist(),
    )


def balanced(labels: NDArray[np.str_], points: int = POINTS) -> NDArray[np.intp]:
    """Choose points of all labels, rare ones as many as common ones as far as there are.

    Parameters
    ----------
    labels
        `(n,)`.
    points
        At most so many.

    Returns
    -------
    NDArray[np.intp]
        Their places, rising; the same each time.
    """
    draw, chosen, left = np.random.RandomState(0), [], points
    names, counts = np.unique(labels, return_counts=True)
    order = np.argsort(counts, kind="stable")  # what rare labels leave, common ones take
    for done, label in enumerate(names[order]):
        share = left // (len(names) - done)
        mine = draw.permutation(np.flatnonzero(labels == label))[:share]
        chosen.append(mine)
        left -= len(mine)
    return np.sort(np.concatenate(chosen))


def picture(step: int, mean: Floats, spread: Floats, wanted: Floats, weight: Floats) -> Image.Image:
    """Draw one example: what was predicted, with its spread, against what came.

    Parameters
    ----------
    step
        For the title.
    mean
        `(T, C, K)`, in running scales.
    spread
        `(T, C, K)`, its logarithm.
    wanted
        `(T, C, K)`, what came.
    weight
        `(T, C, K)`: 0 where nothing was asked; that is not drawn.

    Returns
    -------
    Image.Image
        A row of panels a slot, a column a horizon.
    """
    width, height = PANEL
    image = Image.new("RGB", (width * HORIZONS, height * len(SHOWN) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text(
        (8, 5), f"step {step}: predictions of a held-out stream, in running scales, by frame predicted from", CAME
    )
    for i, (words, colour) in enumerate(
        (("predicted mean", MEAN), ("plus and minus its spread", BAND), ("what came", CAME))
    ):
        left = 8 + 220 * i
        draw.rectangle([left, MARGIN + 4, left + 18, MARGIN + 14], colour)
        draw.text((left + 24, MARGIN + 3), words, CAME)
    for row, slot in enumerate(SHOWN):
        for k in range(HORIZONS):
            corner = (k * width, 2 * MARGIN + row * height)
            at = (slice(SETTLING, None), SLOTS.index(slot), k)
            title = f"{slot.replace('_', ' ')}, horizon {k + 1}"
            _panel(draw, corner, title, (mean[at], np.exp(spread[at]), wanted[at], weight[at] > 0))
    return image


def _panel(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    title: str,
    parts: tuple[Floats, Floats, Floats, NDArray[np.bool_]],
) -> None:
    """Draw one slot at one horizon."""
    mean, spread, wanted, asked = parts
    left, top, right, bottom = corner[0] + 44, corner[1] + 18, corner[0] + PANEL[0] - 8, corner[1] + PANEL[1] - 8
    draw.text((left, corner[1] + 3), title, CAME)
    draw.rectangle([left, top, right, bottom], outline=FRAME)
    if not asked.any():
        draw.text((left + 8, top + 8), "nothing is there", FRAME)
        return
    shown = np.concatenate([(mean - spread)[asked], (mean + spread)[asked], wanted[asked]])
    low, high = float(shown.min()), max(float(shown.max()), float(shown.min()) + 1e-6)

    def y(value: Floats) -> list[float]:
        inside: list[float] = (bottom - 2 - (value - low) / (high - low) * (bottom - top - 4)).tolist()
        return inside

    x = np.linspace(left + 2, right - 2, len(mean)).tolist()
    draw.text((corner[0] + 2, top), f"{high:6.2f}", CAME)
    draw.text((corner[0] + 2, bottom - 12), f"{low:6.2f}", CAME)
    frames = np.flatnonzero(asked)
    for run in np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1):
        xs = [x[i] for i in run]
        up, down = y((mean + spread)[run]), y((mean - spread)[run])
        if len(run) > 1:
            draw.polygon([*zip(xs, up, strict=True), *zip(xs[::-1], down[::-1], strict=True)], BAND)
            draw.line([*zip(xs, y(wanted[run]), strict=True)], CAME, 1)
            draw.line([*zip(xs, y(mean[run]), strict=True)], MEAN, 2)


def _labelled(path: Path) -> tuple[Floats, list[str]]:
    """Read rows `(T, N, ROW)` and a label of each frame."""
    beside = path.with_suffix(".json")
    try:
        rows: Floats = np.load(path)
        labels = [str(label) for label in json.loads(beside.read_text())]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} and {beside.name} cannot be read: {error}") from error
    if rows.ndim != 3 or rows.shape[2] != ROW or len(rows) != len(labels):
        raise TrainingError(f"{path} is {rows.shape} with {len(labels)} labels; it must be (T, N, {ROW}) with T labels")
    return rows, labels
