"""The weights that come with the package: small enough to ship, and good enough to show something."""

import pytest
import torch

from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.model_files import check_model_files
from toprovar_batch.worker.models import build_model, load_vae
from toprovar_batch.worker.packed_weights import SUFFIX
from toprovar_batch.worker.presets import get_preset
from toprovar_batch.worker.reference.scenes.vocab import TASKS
from toprovar_batch.worker.reference.scoring.scorer import SCORER_FILE, load_scorer
from toprovar_batch.worker.reference.training.model_check import check_model
from toprovar_batch.worker.reference.training.vae_training import reconstruction_psnr
from toprovar_batch.worker.resolved import resolve, resolve_model
from toprovar_batch.worker.specs import EngineSpec, ModelSpec, RuntimeSpec

CPU = torch.device("cpu")
TINY = resolve_model(ModelSpec(preset="tiny"))
SHIPPED = SCORER_FILE.parent / "weights"
MOST_BYTES = 40_000_000
MOST_BYTES_A_FILE = 16 << 20
LEAST_PSNR_DB = 28.0
LEAST_SCORE = 0.75
PROMPTS_A_TASK = 2


def _shipped_files():
    """What stands in the package: the weights are packed."""
    return [path for path in SHIPPED.rglob("*") if path.is_file()]


def test_they_are_small_enough_to_ship():
    sizes = {path: path.stat().st_size for path in [*_shipped_files(), SCORER_FILE]}
    assert sum(sizes.values()) <= MOST_BYTES
    assert max(sizes.values()) <= MOST_BYTES_A_FILE


def test_nothing_but_what_a_model_needs_is_shipped():
    files = TINY.files
    known = {"training.json", "vae.safetensors"}
    for folder in map(fetch, (files.transformer, files.text_encoder)):
        known |= {f"{folder.name}/{path.name}" for path in folder.iterdir()}
    names = {str(path.relative_to(SHIPPED)).removesuffix(SUFFIX) for path in _shipped_files()}
    assert names == known


def test_they_load_as_any_other_model():
    assert len(check_model_files(TINY)) == 3
    model = build_model(TINY, CPU, torch.float32)
    preset = get_preset("tiny")
    assert (model.transformer.sizes, model.vae.sizes) == (preset.transformer, preset.vae)
    text = model.text_encoder.encode(["a red cube"])[0]
    assert text.features.shape[1] == preset.transformer.text_width


@pytest.mark.slow
def test_the_vae_reconstructs_scenes_that_training_has_not_shown():
    files = TINY.files
    vae = load_vae(get_preset("tiny").vae, fetch(files.vae), CPU, torch.float32, with_encoder=True)
    assert reconstruction_psnr(vae, 512, 16, CPU)["psnr_db"] >= LEAST_PSNR_DB


@pytest.mark.slow
def test_pictures_show_what_held_out_prompts_ask_for():
    generator = Generator(resolve(EngineSpec()), RuntimeSpec(device="cpu"))
    generator.setup()
    verdicts = check_model(generator, load_scorer(CPU), TASKS, PROMPTS_A_TASK)
    judged = [verdict for found in verdicts.values() for verdict in found]
    assert len(judged) == len(TASKS) * PROMPTS_A_TASK
    score = sum(verdict.passed for verdict in judged) / len(judged)
    assert score >= LEAST_SCORE, [verdict.reason for verdict in judged]
