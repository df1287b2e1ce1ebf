"""The transformer: what is made of its weights once."""

import torch

from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.models import random_transformer

CPU = torch.device("cpu")
SIZES = TransformerArchitecture(depth=2, width=64, num_heads=2, text_width=24, bits_per_token=8)


def _model():
    model = random_transformer(SIZES, 3, CPU, torch.float32)
    with torch.no_grad():
        for block in model.blocks:
            for bias in (block.sa.q_bias, block.sa.v_bias, block.ca.v_bias):
                bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_a_frozen_model_makes_the_constants_of_its_blocks_once_and_the_same():
    features = [torch.randn(5, SIZES.text_width, generator=torch.Generator().manual_seed(2))]
    model = _model()
    with torch.inference_mode():
        before = model.encode_text(features).blocks
        model.freeze()
        after, again = (model.encode_text(features).blocks for _ in range(2))
    for first, second, third in zip(before, after, again, strict=True):
        for name in ("qkv_bias", "q_scale"):
            assert torch.equal(getattr(first, name), getattr(second, name))
            assert getattr(second, name) is getattr(third, name)
        assert torch.equal(first.text_values, second.text_values)


def test_the_constants_of_a_model_in_training_follow_its_weights_and_pass_gradients():
    model = _model().requires_grad_()
    features = [torch.randn(5, SIZES.text_width)]
    context = model.encode_text(features).blocks[0]
    (context.qkv_bias.sum() + context.text_values.sum()).backward()
    assert model.blocks[0].sa.v_bias.grad is not None
    assert model.blocks[0].ca.v_bias.grad is not None
    with torch.no_grad():
        model.blocks[0].sa.v_bias += 1
    assert not torch.equal(model.encode_text(features).blocks[0].qkv_bias, context.qkv_bias)
