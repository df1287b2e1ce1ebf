"""What a batch takes of a GPU's memory, before there is one: pure functions of sizes.

With CUDA graphs there are four kinds of memory. The tensors that stay in place are counted to the byte, by the function
that allocates them. The graphs' pool holds the working set of a layer. PyTorch's ordinary pool holds the largest of what
runs outside of graphs, one after the other. The rest does not grow with the batch.
"""

from dataclasses import dataclass

import torch

from .infinity.config import MAX_TEXT_TOKENS, TransformerArchitecture, VaeArchitecture

from .infinity.kv_cache import cache_bytes
from .infinity.schedule import ScaleSchedule, image_size
from .infinity.text_shapes import CHUNK_ROWS
from .static_batch import BatchShape, sizes_of

# Tensors [T, C] of the compute dtype at a layer's widest, which is self-attention: queries, keys and values in one, the
# turned queries and the output; and an output that is thrown away where the entropy has a pass of its own. The
# feed-forward has five: its input and four in the middle.
_LAYER_WIDTHS = 6


def layer_bytes(sizes: TransformerArchitecture, tokens: int, dtype: torch.dtype) -> int:
    """Most that a layer holds at once beside the tensors that stay in place.

    Args:
        sizes: of the transformer.
        tokens: T that run, over all rows.
        dtype: compute dtype.
    """
    widths = max(_LAYER_WIDTHS * sizes.width, sizes.width + sizes.mlp_width)
    by_head = 4 * (sizes.num_heads + 1)  # float32 that attention keeps of a query: of each head, and their mean
    return tokens * (widths * dtype.itemsize + by_head)
