"""The model files that a job names itself."""

from toprovar_batch.worker.specs import ModelSpec

MODEL_PARTS = ("transformer", "vae", "text_encoder")


def named_files(model: ModelSpec) -> dict[str, str]:
    """The parts of a model for which the job itself names a file, and what it names."""
    named = {part: getattr(model, part) for part in MODEL_PARTS}
    return {part: location for part, location in named.items() if location is not None}
