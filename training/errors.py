"""What can be wrong with what the training scripts are given."""


class TrainingError(Exception):
    """Base of the errors below; the command line prints its message and exits with 2."""


class CorpusError(TrainingError):
    """The corpus folder is missing, empty, or holds something that is not UTF-8 prose."""


class CheckpointError(TrainingError):
    """A checkpoint belongs to another configuration, or cannot be read or written."""


class TokenizerError(TrainingError):
    """A tokenizer that breaks one of the promises the prompts rely on."""
