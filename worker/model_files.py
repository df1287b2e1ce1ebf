"""What can be told about a model's files before anything is loaded.

Only a checkpoint of the user's own needs PyTorch for that, which takes seconds to import. The names and shapes that it
must have are those of the model's modules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ModelSpecError
from .fetch import fetch, is_packaged
from .infinity.encoder_folder import check_local_encoder
from .presets import get_preset
from .resolved import ResolvedModel


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the job's field in front of what is wrong with its value."""
    try:
        yield
    except ModelSpecError as error:
        raise ModelSpecError(f"{field}: {error}") from error


def check_model_files(model: ResolvedModel) -> list[str]:
    """What can be told about a model's files without loading them: of local and shipped checkpoints, names and shapes.

    Args:
        model: its sizes and files.

    Returns:
        One line per part, for a person: where it comes from.

    Raises:
        ModelSpecError: a missing local file; names it.
        CheckpointError: a local checkpoint that does not fit, or one of the package that is not installed.
    """
    lines = []
    for part in ("transformer", "vae", "text_encoder"):
        location = getattr(model.files, part)
        if location is None:
            lines.append(f"{part}: random weights, seed {model.weights_seed}")
            continue
        lines.append(f"{part}: {location}")
        is_id = part == "text_encoder" and not location.startswith((".", "/", "~"))
        if not is_packaged(location) and ("://" in location or is_id):
            continue
        path = fetch(location)
        if not path.exists():
            raise ModelSpecError(f"model.{part}: {location}: no such file or folder")
        if part == "text_encoder":
            with naming("model.text_encoder"):
                check_local_encoder(path, model.transformer.text_width)
        elif not _is_the_presets(part, location, model):
            _check_checkpoint(part, path, model)
    return lines


def _is_the_presets(part: str, location: str, model: ResolvedModel) -> bool:
    """Whether a part is the shipped one of the preset, in its own sizes; our tests load these."""
    preset = get_preset(model.preset)
    own = getattr(preset, f"{part}_file") == location and getattr(preset, part) == getattr(model, part)
    return is_packaged(location) and own


def _check_checkpoint(part: str, path: Path, model: ResolvedModel) -> None:
    from .models import read_transformer, read_vae  # noqa: PLC0415 - PyTorch takes seconds

    if part == "transformer":
        read_transformer(model.transformer, path)
    else:
        read_vae(model.vae, path, with_encoder=False)
