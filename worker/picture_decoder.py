"""Codes of a batch to pixels, image by image."""

from collections.abc import Callable

import torch
from torch import Tensor

from toprovar_batch.kernels.cuda_graphs import Replay
from toprovar_batch.kernels.ops import Backend

from .infinity.vae import Vae, to_uint8


class PictureDecoder:
    """Decodes the images of a batch one by one.

    One image fills a GPU, and its activations are the largest tensors of all. Decoded alone, an image does not depend on
    its batch even in the last digit. Some 300 launches make an image. As one graph they leave the processor to the threads
    that encode files meanwhile.
    """

    def __init__(self, vae: Vae, backend: Backend, graphs: Replay | None = None) -> None:
        """Serve a VAE.

        Args:
            vae: on its device.
            backend: of the kernels.
            graphs: replay the work of an image; None: it runs as it is.
        """
        self._vae, self._backend, self._graphs = vae, backend, graphs
        self._inputs: dict[tuple[int, ...], Tensor] = {}  # codes of one image, by their shape

    def decode(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode a batch; waits for nothing.

        Args:
            codes: [B, z, h, w] float32 summed codes.

        Returns:
            [B, H, W, 3] uint8 RGB, and [B] bool, whether all numbers of an image were finite; on the device.
        """
        run = self._run if self._graphs is None else self._replay(self._graphs, codes.shape[1:])
        pixels, largest = run(codes[:1])
        images = pixels.new_empty(len(codes), *pixels.shape[1:])
        magnitudes = largest.new_empty(len(codes))
        for image in range(len(codes)):
            if image > 0:
                pixels, largest = run(codes[image : image + 1])
            images[image : image + 1].copy_(pixels)
            magnitudes[image : image + 1].copy_(largest)
        return images, magnitudes.isfinite()

    def _run(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """[1, z, h, w] to [1, H, W, 3] uint8 and [1] float32, the largest magnitude before the clamp."""
        pixels, largest = self._vae.decode_checked(codes, self._backend)
        return to_uint8(pixels), largest

    def _replay(self, graphs: Replay, shape: tuple[int, ...]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`_run` over one tensor of codes; what it gives holds until the next image."""
        if shape not in self._inputs:
            self._inputs[shape] = torch.empty((1, *shape), device=next(self._vae.parameters()).device)
        own = self._inputs[shape]

        def run(codes: Tensor) -> tuple[Tensor, Tensor]:
            own.copy_(codes)
            made: tuple[Tensor, Tensor] = graphs.run(("decode", shape), lambda: self._run(own))
            return made

        return run
