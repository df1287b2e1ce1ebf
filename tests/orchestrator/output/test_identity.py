"""The identity of a job that exists: an output folder begun by an earlier version must go on."""

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job

DEMO = {
    "model.preset": "tiny",
    "model.transformer": "package://worker/reference/weights/transformer",
    "model.vae": "package://worker/reference/weights/vae.safetensors",
    "model.text_encoder": "package://worker/reference/weights/text_encoder",
    "model.architecture.depth": 9,
    "model.architecture.width": 320,
    "model.architecture.num_heads": 5,
    "model.architecture.text_width": 256,
    "model.architecture.codebook_dim": 32,
    "model.architecture.spatial_patchify": False,
    "model.architecture.vae_base_channels": 32,
    "model.architecture.vae_channel_multipliers": [1, 2, 2, 4, 4],
    "model.random_weights": False,
    "model.weights_seed": 0,
    "model.dtype": "auto",
    "sampling.cfg_scale": 3.0,
    "sampling.temperature": 1.0,
    "sampling.top_k": 0,
    "sampling.top_p": 0.97,
    "sampling.greedy": False,
    "sampling.cfg_insertion_layer": 0,
    "sampling.seed": 0,
    "sampling.images_per_prompt": 1,
    "sampling.negative_prompt": None,
    "image.resolution": "0.25M",
    "image.format": "png",
    "image.quality": 95,
    "image.h_div_w": [1.0],
    "policy.pruning_map": False,
    "policy.conditional_from": 7,
    "policy.name": "toprovar",
    "policy.scale_pruning": False,
    "policy.layer_pruning": False,
    "policy.token_pruning": True,
    "policy.depth_threshold": 0.6,
    "policy.threshold_direction": "at_most",
    "policy.representative_scale": 7,
    "policy.beta": 0.003,
    "policy.layer_threshold": 0.5,
    "policy.a_min": 0.5,
    "policy.a_max": 0.5,
    "policy.normalisation": "mean_one",
    "policy.saliency": "code_detail",
    "policy.selection": "top_count",
    "policy.keep_ratio_floor": 0.01,
    "policy.restoration": "identity",
    "policy.code_layer_fraction": 1.0,
    "shard_size": 4,
    "prompts (number of samples)": 32,
    "prompts (content)": "e73140fa0ed92ec0f48c85eef8cd2522047a263764736fabf223a7e67f67db0a",
}
# By content: these change with the shipped weights, and with nothing else.
WEIGHTS = {
    "model.transformer (file)": "8f23e712, 32513496 bytes",
    "model.vae (file)": "68c3c4bc, 11275302 bytes",
    "model.text_encoder (file)": "b03a5d04, 3149186 bytes",
}


def test_the_demo_has_the_identity_that_it_always_had(pytestconfig):
    job = load_job(str(pytestconfig.rootpath / "jobs/demo.yaml"))
    assert job_identity(job, plan_job(job)) == DEMO | WEIGHTS
