"""What goes wrong in training for a reason that its user can mend."""


class TrainingError(Exception):
    """Says what, which, and what to do; the last line on stdout carries it."""
