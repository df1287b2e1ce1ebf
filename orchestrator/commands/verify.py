"""The `verify` command: does this implementation agree with recorded vectors of the official one?"""

from pathlib import Path

import click

from toprovar_batch.orchestrator.commands.local_file import LocalFile
from toprovar_batch.orchestrator.console import echo
from toprovar_batch.worker.errors import ModelSpecError, RunFailedError


@click.command("verify")
@click.argument("folder", type=LocalFile(path_type=Path))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--backend", type=click.Choice(["auto", "torch", "triton"]), default="torch", show_default=True)
def verify_command(folder: Path, device: str, backend: str) -> None:
    """Compare with the recorded vectors in FOLDER (meta.json, checkpoint, VAE, io.safetensors).

    Prints the agreement of every scale, fed with the recorded bits, then of the entropies and the picture.
    Exits with 1 if a bit differs where the guided margin exceeds 1e-4, or an error is too large. The limits are
    1e-5 of the scale's largest for a logit, 1e-4 for an entropy and 1 for a pixel. At most 0.3% of pixel values
    may differ at all.
    """
    from toprovar_batch.worker.verify import verify_folder  # noqa: PLC0415 - imports torch

    if not folder.is_dir():
        raise ModelSpecError(f"{folder}: no such folder; name one that holds meta.json and io.safetensors")
    report = verify_folder(folder, device, backend)
    echo("scale  map       logit error  bits differing")
    for scale in report.scales:
        size = f"{scale.size[0]}x{scale.size[1]}"
        echo(
            f"{scale.scale_index:5d}  {size:<8}  {scale.logit_error:11.2e}  {scale.bits_differing} of {scale.num_bits}"
        )
    echo(f"largest entropy error    {report.entropy_error:.2e} nats")
    echo(f"largest error of codes   {report.latent_error:.2e}")
    echo(
        f"largest pixel difference {report.pixel_difference} of 255 ({report.pixel_fraction:.3%} of values differ)"
    )
    if not report.passed:
        raise RunFailedError(f"{folder}: this implementation does not agree with the recorded vectors")
    echo("agrees")
