"""What TensorBoard shows of a run. (draft)"""


class Board:
    """Summaries."""

    def __init__(self, out_dir, known):
        self.out_dir = out_dir

    def graph(self, graph):
        """Graph."""

    def evaluation(self, step, loss, held, parts):
        """Evaluation."""

    def close(self, session):
        """Close."""
