"""The training stages on small sizes: what they feed, what they ask for, and that they learn."""

import math
from types import SimpleNamespace

import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.infinity.bsq import ResidualSum, code_maps_to_tokens, quantize, tokens_to_bit_maps
from toprovar_batch.worker.infinity.checkpoint import save_plain
from toprovar_batch.worker.infinity.config import T5Architecture, TransformerArchitecture, VaeArchitecture
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.infinity.text import TextEncoder
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.infinity.vae import Vae
from toprovar_batch.worker.models import load_vae
from toprovar_batch.worker.reference.training import text_training
from toprovar_batch.worker.reference.training.feature_pool import FeaturePool
from toprovar_batch.worker.reference.training.model_training import (
    ModelTrainingSettings,
    ReferenceModel,
    build_optimizers,
    initialize_for_training,
)
from toprovar_batch.worker.reference.training.schedule import AveragedWeights, TimedCosine
from toprovar_batch.worker.reference.training.teacher_forcing import (
    PaddedKeys,
    TransformerLoss,
    all_rotations,
    bit_loss,
    corrupt,
    scale_weights,
    teacher_forced_logits,
)
from toprovar_batch.worker.reference.training.text_training import (
    build_text_encoder,
    build_tokenizer,
    encode_captions,
    tokenize,
)
from toprovar_batch.worker.reference.training.vae_training import quantized, vae_loss
from toprovar_batch.worker.sampling_settings import SamplingSettings

CPU = torch.device("cpu")
SCHEDULE = scale_schedule(1.0, "0.06M")
SHORT = ((1, 1), (2, 2), (4, 4))
SIZES = TransformerArchitecture(depth=2, width=64, num_heads=2, text_width=128, bits_per_token=8)
TEXT = T5Architecture(d_model=128, d_kv=32, d_ff=64, num_layers=1, num_heads=2)
CAPTIONS = ["a photo of a red cube", "two blue spheres left of a green cone, on a wooden floor"]


@pytest.fixture(scope="module")
def tokenizer():
    """Of a tenth of the captions: these tests need no good words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_training, "_CORPUS", text_training._CORPUS // 10)
        return build_tokenizer()


def _model(tokenizer):
    torch.manual_seed(0)
    transformer = Infinity(SIZES)
    initialize_for_training(transformer)
    return ReferenceModel(transformer, build_text_encoder(TEXT, len(tokenizer)))


def _captions(tokenizer, size=32):
    """Tokens of the captions, and which of them are no padding."""
    ids, lengths = tokenize(tokenizer, CAPTIONS, size)
    return ids, torch.arange(size) < lengths[:, None]


def _text(model, tokenizer):
    """The captions' context as the engine makes it, without padding."""
    ids, seen = _captions(tokenizer)
    features = encode_captions(model.text_encoder, ids, seen)
    return model.transformer.encode_text([row[mask] for row, mask in zip(features, seen, strict=True)])


def _features(schedule):
    return torch.randn(2, 8, *schedule[-1], generator=torch.Generator().manual_seed(1))


def test_teacher_forcing_gives_the_logits_of_the_sampler(tokenizer):
    model = _model(tokenizer)
    torch.nn.init.normal_(model.transformer.head.weight)
    tokens = corrupt(_features(SCHEDULE), SCHEDULE, 0.0)
    with torch.no_grad():
        text = _text(model, tokenizer)
        rotations = all_rotations(SCHEDULE, SIZES.head_dim, CPU)
        logits = teacher_forced_logits(model.transformer, text, tokens.inputs, SCHEDULE, rotations).view(
            2, -1, 16
        )
        count = len(SCHEDULE)
        settings = SamplingSettings((1.0,) * count, (1.0,) * count)
        sizes = {"largest_map": (64, 64), "codebook_dim": 8, "spatial_patchify": False}
        state = BatchRunner(model.transformer, text, SCHEDULE, settings, **sizes, backend=PYTORCH)
        start = 0
        for scale_index, (height, width) in enumerate(SCHEDULE):
            stop = start + height * width
            sampled = state.run_scale(scale_index).logit_maps
            assert torch.allclose(sampled, logits[:, start:stop], atol=1e-4)
            state.add_bits(scale_index, tokens.targets[:, start:stop])
            start = stop


def test_without_flips_the_targets_are_the_quantised_features():
    features = _features(SCHEDULE)
    tokens = corrupt(features, SCHEDULE, 0.0)
    bits = [code_maps_to_tokens(maps, False) for maps in quantize(features, SCHEDULE, False)]
    assert torch.equal(tokens.targets, torch.cat(bits, dim=1))
    assert [part.shape[1] for part in tokens.inputs] == [h * w for h, w in SCHEDULE[1:]]


def test_the_first_scales_alone_are_those_of_the_whole():
    features = _features(SCHEDULE)
    whole, first = corrupt(features, SCHEDULE, 0.0), corrupt(features, SCHEDULE, 0.0, 3)
    assert torch.equal(first.targets, whole.targets[:, : first.targets.shape[1]])
    assert first.targets.shape[1] == sum(h * w for h, w in SCHEDULE[:3])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.inputs, whole.inputs, strict=False))


def test_padding_the_text_changes_no_logit(tokenizer):
    model = _model(tokenizer)
    tokens = corrupt(_features(SHORT), SHORT, 0.2)
    rotations = all_rotations(SHORT, SIZES.head_dim, CPU)
    with torch.no_grad():
        text = _text(model, tokenizer)
        expected = teacher_forced_logits(model.transformer, text, tokens.inputs, SHORT, rotations)
        ids, seen = _captions(tokenizer, 64)
        features = encode_captions(model.text_encoder, ids, seen)
        padded = model.transformer.encode_padded(features, PaddedKeys(seen))
        assert padded.blocks[0].text_keys.shape[2] == 64
        actual = teacher_forced_logits(model.transformer, padded, tokens.inputs, SHORT, rotations)
    assert torch.allclose(actual, expected, atol=1e-5)


def test_the_targets_correct_what_flips_did():
    features = _features(SCHEDULE)
    torch.manual_seed(3)
    tokens = corrupt(features, SCHEDULE, 0.6)
    clean = corrupt(features, SCHEDULE, 0.0)
    assert not torch.equal(tokens.targets, clean.targets)
    # The last scale's targets, added to the corrupted sum that its inputs show, come closer to the features.
    last = tokens.inputs[-1]
    total = ResidualSum(SCHEDULE, 2, 8, False, CPU)
    total.summed_codes += tokens_to_bit_maps(last, SCHEDULE[-1], False)
    before = (features - total.summed_codes).square().mean()
    targets = tokens.targets[:, -last.shape[1] :]
    total.add(len(SCHEDULE) - 1, tokens_to_bit_maps(targets, SCHEDULE[-1], False))
    assert (features - total.summed_codes).square().mean() < before


def test_a_step_of_stage_one_lowers_its_loss():
    torch.manual_seed(0)
    vae = Vae(VaeArchitecture(8, 32, (1, 1, 1, 1, 1), False), with_encoder=True)
    images = torch.nn.functional.interpolate(torch.rand(2, 3, 3, 3) * 2 - 1, (32, 32), mode="bilinear")
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss, _ = vae_loss(vae, images, SHORT[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert vae.encoder.conv_in.weight.grad.abs().max() > 0  # straight through the quantisation


def test_a_step_of_stage_two_lowers_its_loss(tokenizer):
    model = _model(tokenizer)
    tokens = corrupt(_features(SHORT), SHORT, 0.2)
    forward = TransformerLoss(model.transformer, SHORT, CPU)
    ids, seen = _captions(tokenizer)
    optimizers = build_optimizers(model, ModelTrainingSettings())
    losses = []
    for _ in range(12):
        features = encode_captions(model.text_encoder, ids, seen)
        loss, _ = forward(features, seen, torch.tensor([False, True]), tokens.targets, *tokens.inputs)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 2 * group["peak"]
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_parameter_has_one_optimizer(tokenizer):
    model = _model(tokenizer)
    optimizers = build_optimizers(model, ModelTrainingSettings())
    of_each = [[p for group in each.param_groups for p in group["params"]] for each in optimizers]
    assert sorted(map(id, [*of_each[0], *of_each[1]])) == sorted(map(id, model.parameters()))
    matrices = {id(p) for p in of_each[0]}
    assert id(model.transformer.blocks[0].ffn.fc1.weight) in matrices
    assert id(model.transformer.head.weight) not in matrices
    assert id(model.text_encoder.shared.weight) not in matrices


def test_straight_through_codes_are_the_quantised_ones_with_the_features_gradient():
    features = _features(SHORT).requires_grad_()
    codes = quantized(features, SHORT)
    total = ResidualSum(SHORT, 2, 8, False, CPU)
    for scale_index, bits in enumerate(quantize(features.detach(), SHORT, False)):
        total.add(scale_index, bits)
    assert torch.allclose(codes, total.summed_codes, atol=1e-6)
    codes.sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))


def test_scales_count_as_the_root_of_their_tokens():
    weights = scale_weights(SHORT, CPU)
    assert weights.mean().item() == pytest.approx(1)
    of_scale = [part.sum().item() for part in weights.split([1, 4, 16])]
    assert of_scale[1] / of_scale[0] == pytest.approx(2)
    assert of_scale[2] / of_scale[0] == pytest.approx(4)


def test_bit_loss_counts_right_bits():
    targets = torch.tensor([[[True, False]]])
    logits = torch.tensor([[0.0, 9.0, 0.0, 9.0]])
    loss, right = bit_loss(logits, targets, torch.ones(1))
    assert right.tolist() == [0.5]
    assert loss.item() == pytest.approx(4.5, abs=1e-3)


def test_the_pool_keeps_the_newest_pictures_and_their_captions():
    pool = FeaturePool(3, (1, 1, 1), 4, CPU, seed=0)
    for value in range(5):
        ids = torch.full((1, 4), value)
        pool.add(torch.full((1, 1, 1, 1), float(value)), ids, torch.tensor([value % 4]))
    drawn = pool.draw(50)
    assert {int(value) for value in drawn.features.flatten()} == {2, 3, 4}
    assert torch.equal(drawn.ids[:, 0], drawn.features.flatten().long())
    assert torch.equal(drawn.seen.sum(1), drawn.ids[:, 0] % 4)


@pytest.mark.parametrize("text", ["A red CUBE.", "立方体 🧊 é\u0301", "x" * 3000])
def test_the_tokenizer_knows_every_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids


def test_a_trained_text_encoder_loads_as_any_other(tokenizer, tmp_path):
    encoder = build_text_encoder(TEXT, len(tokenizer)).eval()
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = TextEncoder.load(str(tmp_path), CPU, torch.float32)
    with torch.no_grad():
        ids, seen = _captions(tokenizer)
        expected = encode_captions(encoder, ids, seen)
    for text, features, mask in zip(loaded.encode(CAPTIONS), expected, seen, strict=True):
        assert torch.allclose(text.features, features[mask], atol=1e-5)


def test_a_trained_vae_loads_as_any_other(tmp_path):
    sizes = VaeArchitecture(8, 32, (1, 1, 1, 1, 1), False)
    save_plain(Vae(sizes, with_encoder=True), tmp_path / "vae.safetensors")
    assert load_vae(sizes, tmp_path / "vae.safetensors", CPU, torch.float32).sizes == sizes


def test_the_rate_warms_up_and_falls_to_zero_over_its_minutes(monkeypatch):
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr("toprovar_batch.worker.reference.training.schedule.time.monotonic", lambda: now.value)
    clock = TimedCosine(1.0, minutes=1.0, warmup_seconds=6.0)
    rates = []
    for second in (0, 3, 6, 30, 60):
        now.value = 100.0 + second
        rates.append(clock.rate)
    assert rates[0] == 0
    assert rates[1] == pytest.approx(0.5, abs=0.01)
    assert rates[2] > rates[3] > rates[4] == pytest.approx(0, abs=1e-9)
    assert clock.over


def test_averaged_weights_follow_at_their_own_pace():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    averaged = AveragedWeights(module, 0.9)
    torch.nn.init.ones_(module.weight)
    seen = []
    for _ in range(60):
        averaged.update(module)
        seen.append(averaged.module.weight.item())
    assert seen == sorted(seen)
    assert 0 < seen[0] < 1
    assert seen[-1] == pytest.approx(1, abs=0.01)
