"""The errors of `models`, drawn.

    ModelsError
    ├── ArtifactError                a trained model is refused: damaged, tampered with, or another version's
    ├── EngineError                  a package that would run the model is missing, or cannot run it
    ├── ShapeError                   an array does not fit the model or the state
    ├── TrainingEnvironmentError     the environment to train in cannot be made
    └── VirtualEnvironmentError      nor can some other

A class exists only where a caller catches it differently. A message says what, which, and what to do.
"""

from __future__ import annotations


class ModelsError(Exception):
    """Root of the errors of this package; the message says what, which, and what to do."""


class ArtifactError(ModelsError):
    """A trained model is refused."""


class EngineError(ModelsError):
    """A package that would run the model is missing, or cannot run it."""


class ShapeError(ModelsError):
    """An array does not fit the model or the state."""


class TrainingEnvironmentError(ModelsError):
    """The environment to train in cannot be made."""


class VirtualEnvironmentError(ModelsError):
    """A virtual environment cannot be made from its locks."""
