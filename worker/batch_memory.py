"""What a batch takes of a GPU's memory, before there is one: pure functions of sizes.

With CUDA graphs it is, beside the weights:

- the tensors that stay in place, to the byte, since `sizes_of` also decides what is allocated;
- the graphs' pool, which holds the widest layer or the decoder, see `Replay.reserve`;
- PyTorch's own pool, which holds the largest of what runs outside of graphs. That is the same before its capture, or the
  text on its way to its place. It keeps smaller pieces, too, and gives them back when it needs room;
- what waits for its copy to the host, and what a policy keeps from scale to scale;
- what does not grow with the batch: the text encoder and its graphs.

Without graphs the cache of keys and values and a multiple of the hidden state are estimated.
"""

from dataclasses import dataclass
from math import prod

import torch

from .infinity.bsq import code_size
from .infinity.config import MAX_TEXT_TOKENS, TransformerArchitecture, VaeArchitecture
from .infinity.kv_cache import cache_bytes
from .infinity.schedule import ScaleSchedule, image_size
from .infinity.text_shapes import CHUNK_ROWS
from .pipeline import BATCHES_ON_DEVICE
from .resolved import ResolvedSpec
from .static_batch import BatchShape, sizes_of

# Tensors [T, C] of the compute dtype at a layer's widest, which is self-attention: queries, keys and values in one, the
# turned queries and the output; and an output that is thrown away where the entropy has a pass of its own. The
# feed-forward has five: its input and four in the middle.
_LAYER_WIDTHS = 6
# Without graphs, in multiples of the [T, C] hidden state: it and its sum in float32, the widest layer of PyTorch's own
# operations, and pieces of smaller scales that PyTorch's pool keeps.
_UNCAPTURED_WIDTHS = 25
# The pool of the text encoder's graphs (in T5-XL, 8 texts of 512 tokens take 0.9 GB at once, and shorter ones a third of
# that), what libraries take for themselves (the decoder's convolutions take it from the graphs' pool), and the graphs.
_FIXED = 3 * 2**29


@dataclass(frozen=True)
class BatchKind:
    """What decides how much memory a batch of some number of images takes.

    Attributes:
        sizes: of the transformer.
        vae: of the VAE.
        dtype: compute dtype.
        schedule: token map sizes.
        guided: whether there is an unconditional branch.
        packs: whether some tokens of a scale may run while others do not.
        keeps_changes: whether the policy restores dropped tokens from kept changes of every layer.
    """

    sizes: TransformerArchitecture
    vae: VaeArchitecture
    dtype: torch.dtype
    schedule: ScaleSchedule
    guided: bool
    packs: bool
    keeps_changes: bool

    @classmethod
    def of(cls, spec: ResolvedSpec, h_div_w: float, dtype: torch.dtype) -> "BatchKind":
        """The kind of a job's batches of one height / width."""
        return cls(
            spec.model.transformer,
            spec.model.vae,
            dtype,
            spec.schedule_of(h_div_w),
            guided=spec.settings.guided,
            packs=spec.policy.packs_tokens,
            keeps_changes=getattr(spec.policy, "restoration", None) == "cached",
        )

    @property
    def rows(self) -> int:
        """Of an image."""
        return 2 if self.guided else 1

    @property
    def image_tokens(self) -> int:
        """Tokens of all scales and rows of an image."""
        return self.rows * sum(height * width for height, width in self.schedule)

    def shape(self, images: int, text_tokens: int = MAX_TEXT_TOKENS) -> BatchShape:
        """The shape of a batch, by default with room for the longest texts."""
        return BatchShape(
            self.schedule,
            self.rows * images,
            text_tokens,
            self.vae.codebook_dim,
            code_size(self.schedule[-1], self.vae.spatial_patchify),
            images,
            self.packs,
        )


def batch_bytes(kind: BatchKind, block_m: int | None, images: int) -> int:
    """Most that a batch takes beside the weights.

    Args:
        kind: of the batch.
        block_m: queries of a block of attention with CUDA graphs; None: without them, where it is estimated.
        images: B.
    """
    if block_m is None:
        return _uncaptured_bytes(kind, images)
    shape = kind.shape(images)
    layer = layer_bytes(kind.sizes, shape.most_tokens, kind.dtype)
    captured = max(layer, decoder_bytes(kind.vae, kind.schedule, kind.dtype))
    outside = max(captured, text_bytes(kind, shape.num_rows))
    return (
        static_bytes(kind, shape, block_m)
        + captured
        + outside
        + waiting_bytes(kind, images)
        + _changes_bytes(kind, images)
        + fixed_bytes(kind)
    )


def _uncaptured_bytes(kind: BatchKind, images: int) -> int:
    rows = kind.rows * images
    *earlier, last = (height * width for height, width in kind.schedule)
    states = rows * last * kind.sizes.width * kind.dtype.itemsize * _UNCAPTURED_WIDTHS
    cache = cache_bytes(kind.sizes, rows, sum(earlier), last, kind.dtype)
    return cache + states + _changes_bytes(kind, images)


def static_bytes(kind: BatchKind, shape: BatchShape, block_m: int) -> int:
    """What the tensors of a batch that stay in place take."""
    wanted = sizes_of(shape, kind.sizes, kind.dtype, block_m)
    return sum(size * dtype.itemsize for size, dtype in wanted.values())


def layer_bytes(sizes: TransformerArchitecture, tokens: int, dtype: torch.dtype) -> int:
    """Most that a layer holds at once beside the tensors that stay in place.

    Args:
        sizes: of the transformer.
        tokens: T that run, over all rows.
        dtype: compute dtype.
    """
    widths = max(_LAYER_WIDTHS * sizes.width, sizes.width + sizes.mlp_width)
    # What attention keeps of a query in float32: a number of each head, and their mean.
    by_head = 4 * (sizes.num_heads + 1)
    return tokens * (widths * dtype.itemsize + by_head)


def text_bytes(kind: BatchKind, rows: int) -> int:
    """What the longest texts of some rows give to the transformer: their keys and values in every layer."""
    return 2 * kind.sizes.depth * rows * MAX_TEXT_TOKENS * kind.sizes.width * kind.dtype.itemsize


def decoder_bytes(vae: VaeArchitecture, schedule: ScaleSchedule, dtype: torch.dtype) -> int:
    """What the decoder holds of one image at its widest, in the second of the blocks at full size.

    These are the maps that the level began with, as wide as the level before, the block's input, both sides of its norm,
    and the output of its convolution.

    Args:
        vae: its sizes.
        schedule: token map sizes.
        dtype: compute dtype.
    """
    pixels = prod(image_size(schedule))
    return (vae.channel_multipliers[1] + 4) * vae.base_channels * pixels * dtype.itemsize


def waiting_bytes(kind: BatchKind, images: int) -> int:
    """Codes in float32 and pixels of the batches on the device; pixels image by image, and as one tensor."""
    codes = 4 * kind.vae.codebook_dim * prod(code_size(kind.schedule[-1], kind.vae.spatial_patchify))
    return BATCHES_ON_DEVICE * images * (codes + 2 * 3 * prod(image_size(kind.schedule)))


def fixed_bytes(kind: BatchKind) -> int:
    """What does not grow with the batch: a chunk of texts, and the text encoder."""
    return text_bytes(kind, CHUNK_ROWS) + _FIXED


def _changes_bytes(kind: BatchKind, images: int) -> int:
    """Of the last scale but one at most."""
    if not kind.keeps_changes:
        return 0
    height, width = kind.schedule[-2]
    return kind.sizes.depth * kind.rows * images * height * width * kind.sizes.width * kind.dtype.itemsize
