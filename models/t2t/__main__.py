"""The program that `gridsense train` starts in the training environment: `python -m t2t generate|train|export`.

In: options. Out: lines of JSON on stdout, each with its `event`; noise on stderr; exit status 1 after a last line
`{"event": "error", "message": …}` where something is wrong that its user can mend, 2 for wrong options.
"""

import argparse
import sys
from pathlib import Path

import tensorflow.compat.v1 as tf

from .errors import TrainingError
from .export import export
from .graph import MODELS
from .progress import say
from .records import generate
from .train import EVALUATE_EVERY, Run, train


def options() -> argparse.ArgumentParser:
    """Describe the command line.

    Returns
    -------
    argparse.ArgumentParser
        With one subcommand a verb.
    """
    parser = argparse.ArgumentParser(prog="t2t", description="Trains the sequence model by Tensor2Tensor.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    generating = verbs.add_parser("generate", help="rows to records")
    generating.add_argument("--tmp-dir", type=Path, required=True, help="holds train/, eval/ and test/ with *.npy")
    training = verbs.add_parser("train", help="records to checkpoints; goes on where it was stopped")
    training.add_argument("--steps", type=int, default=0, help="at most; 0: as many as the set says")
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--evaluate-every", type=int, default=EVALUATE_EVERY, metavar="STEPS")
    training.add_argument("--known", type=Path, help="holds NAME.npy of rows and NAME.json of a label a frame")
    exporting = verbs.add_parser("export", help="the best checkpoint to what serves it")
    exporting.add_argument("--to", type=Path, required=True, help="the folder to write to")
    for verb in (generating, training, exporting):
        verb.add_argument("--data-dir", type=Path, required=True, help="of the records")
    for verb in (training, exporting):
        verb.add_argument("--model", choices=MODELS, default="lstm_seq2seq")
        verb.add_argument("--hparams-set", default="lstm_pmu")
        verb.add_argument("--hparams", default="", help="name=value,...: instead of the set's")
        verb.add_argument("--out-dir", type=Path, required=True, help="of the checkpoints")
    return parser


def main() -> int:
    """Do what the command line says.

    Returns
    -------
    int
        The exit status.
    """
    chosen = options().parse_args()
    tf.logging.set_verbosity(tf.logging.ERROR)
    try:
        if chosen.verb == "generate":
            generate(chosen.data_dir, chosen.tmp_dir)
        elif chosen.verb == "train":
            run = Run(
                chosen.model, chosen.hparams_set, chosen.hparams, chosen.steps, chosen.seed, chosen.evaluate_every
            )
            train(run, data_dir=chosen.data_dir, out_dir=chosen.out_dir, known=chosen.known)
        else:
            export(
                model=chosen.model,
                hparams_set=chosen.hparams_set,
                overrides=chosen.hparams,
                data_dir=chosen.data_dir,
                out_dir=chosen.out_dir,
                to=chosen.to,
            )
    except (TrainingError, OSError) as error:
        say("error", message=str(error))
        return 1
    except tf.errors.OpError as error:  # a full disk, say
        say("error", message=error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
