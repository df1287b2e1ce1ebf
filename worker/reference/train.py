"""Training of the reference model, stage by stage: `python -m toprovar_batch.worker.reference.train STAGE`."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch

from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.presets import get_preset
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.runtime import resolve_device
from toprovar_batch.worker.specs import EngineSpec, ModelSpec, RuntimeSpec, SamplingSpec

from .scenes.vocab import TASKS
from .scoring.scorer import SCORER_FILE, load_scorer
from .training import data_parallel
from .training.detector_training import train_detector_command
from .training.model_check import check_model
from .training.model_training import ModelTrainingSettings, train_model
from .training.vae_training import VaeTrainingSettings, train_vae


def _workers() -> int:
    return max(0, (os.cpu_count() or 1) // data_parallel.processes() - 2)


@click.group()
def train() -> None:
    """Train the reference model on procedural scenes, on one GPU."""
    torch.set_float32_matmul_precision("high")
    torch.multiprocessing.set_sharing_strategy("file_system")


@train.command("vae")
@click.option("--minutes", type=float, default=VaeTrainingSettings.minutes, show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write."
)
@click.option("--resume", type=click.Path(path_type=Path, exists=True), help="Weights to start from.")
@click.option("--batch-small", type=int, default=VaeTrainingSettings.batch_small, show_default=True)
@click.option("--batch-large", type=int, default=VaeTrainingSettings.batch_large, show_default=True)
@click.option("--small-fraction", type=float, default=VaeTrainingSettings.small_fraction, show_default=True)
def vae_command(output: Path, resume: Path | None, **settings: Any) -> None:
    """Stage 1: the VAE with binary spherical multi-scale quantisation."""
    recipe = VaeTrainingSettings(num_workers=_workers(), **settings)
    click.echo(json.dumps(train_vae(get_preset("tiny").vae, recipe, output, resolve_device("auto"), resume)))


@train.command("model")
@click.option(
    "--vae", "vae_file", type=click.Path(path_type=Path, exists=True), required=True, help="Stage 1's file."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--resume", type=click.Path(path_type=Path, exists=True), help="Output of an earlier run.")
@click.option("--minutes", type=float, default=ModelTrainingSettings.minutes, show_default=True)
@click.option(
    "--begin",
    "start",
    type=float,
    default=0.0,
    show_default=True,
    help="Where on the whole cosine this run begins.",
)
@click.option("--end", "stop", type=float, default=1.0, show_default=True, help="Where it ends.")
@click.option("--scales", type=int, help="Train only so many scales, the coarsest.")
@click.option("--batch-size", type=int, default=ModelTrainingSettings.batch_size, show_default=True)
@click.option("--peak-rate", type=float, default=ModelTrainingSettings.peak_rate, show_default=True)
@click.option("--capture/--no-capture", default=True, help="Record each step as CUDA graphs.")
@click.option("--matrix-rate", type=float, default=ModelTrainingSettings.matrix_rate, show_default=True)
@click.option("--prefill", type=int, default=ModelTrainingSettings.prefill, show_default=True)
@click.option("--new-every", type=int, default=ModelTrainingSettings.new_every, show_default=True)
@click.option("--seed", type=int, default=ModelTrainingSettings.seed, show_default=True)
def model_command(vae_file: Path, output: Path, resume: Path | None, **settings: Any) -> None:
    """Stage 2: transformer and text encoder, on what the VAE makes of the scenes."""
    device = data_parallel.join()
    recipe = ModelTrainingSettings(num_workers=_workers(), **settings)
    record = train_model(get_preset("tiny"), recipe, vae_file, output, device, resume)
    data_parallel.leave()
    if record:
        click.echo(json.dumps({name: record[name] for name in ("steps", "seconds", "right_bits")}))


@train.command("check")
@click.option(
    "--weights", type=click.Path(path_type=Path, exists=True), required=True, help="Stage 2's output."
)
@click.option(
    "--vae", "vae_file", type=click.Path(path_type=Path, exists=True), required=True, help="Stage 1's file."
)
@click.option("--scorer", "scorer_file", type=click.Path(path_type=Path), default=SCORER_FILE)
@click.option("--prompts", type=int, default=20, show_default=True, help="Held-out prompts per task.")
@click.option("--images", type=int, default=1, show_default=True, help="Pictures per prompt.")
@click.option("--cfg-scale", type=float, default=3.0, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
def check_command(
    weights: Path,
    vae_file: Path,
    scorer_file: Path,
    prompts: int,
    images: int,
    cfg_scale: float,
    temperature: float,
) -> None:
    """Score pictures of held-out prompts, task by task."""
    model = ModelSpec(
        transformer=str(weights / "transformer"),
        vae=str(vae_file),
        text_encoder=str(weights / "text_encoder"),
    )
    generator = Generator(
        resolve(EngineSpec(model=model, sampling=SamplingSpec(cfg_scale=cfg_scale, temperature=temperature))),
        RuntimeSpec(),
    )
    generator.setup()
    verdicts = check_model(generator, load_scorer(generator.device, scorer_file), TASKS, prompts, images)
    for task, found in verdicts.items():
        reasons = Counter((verdict.reason or "right").split(":")[0] for verdict in found)
        click.echo(f"{task:15s} {reasons['right'] / len(found):.3f} of {len(found):3d}  {dict(reasons)}")


train.add_command(train_detector_command)


if __name__ == "__main__":
    train()
