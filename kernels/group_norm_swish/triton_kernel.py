"""Group norm and swish of channels-last maps in two passes over memory, in Triton.

A tile is BLOCK pixels with all their channels, so that memory is read in its order. The first pass gives each chunk of
tiles of an image to a program. For every place of the tile it follows the mean m and the sum of squares about it, S,
by Welford's update for the k-th value x:

    d = x - m        m += d / k        S += d (x - m)

and joins the n values of each place to those of the chunk's groups, with M the mean of the places' means:

    M = sum(n m) / sum(n)        drift = sum(n (m - M)) / sum(n)        squares = sum(S + n (m - M)^2)

No large numbers are subtracted from each other: M is near every m as far as the values are near each other, and `drift`
is what float32 rounded off M. A small launch joins the chunks in their order by Chan's formula.
There are few of them, so it does this in float64. It leaves a centre and a scale for each channel:

    centre = mean - input_bias        scale = weight / sqrt(variance + eps)

The second pass gives y = (x - centre) scale + bias, then y / (1 + e^-y), for few tiles per program. Centre, scale and
x - centre are rounded to float32. Of maps that are float32 themselves a value far from the mean would show all three. There
each of them is carried with what its rounding left out (Dekker 1971; Knuth's TwoSum), and y is rounded about once.

Where the maps are a residual sum that is still to be made, the first pass makes it, and so need not read it.

What is added to what depends on C, H and W alone, and no image sees another. So an image's bits are the same in any
batch and in any run.
"""

import triton
import triton.language as tl

# Sizes differ from image to image and must not compile anew.
_NUMBERS = ["num_pixels", "num_chunks", "num_steps"]


@triton.jit
def _rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off; a GPU rounds to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _channels(GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, PADDED: tl.constexpr):
    """The channel at each place of a row of a tile, and whether there is one: groups are padded to a power of two."""
    place = tl.arange(0, GROUPS * PADDED)
    if PER_GROUP == PADDED:
        return place, place >= 0
    within = place % PADDED
    return place // PADDED * PER_GROUP + within, within < PER_GROUP


@triton.jit
def _sum_by_group(x, GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """[BLOCK, GROUPS * PADDED] to [GROUPS]."""
    return tl.sum(tl.reshape(tl.sum(x, 0), [GROUPS, PADDED]), 1)


@triton.jit(do_not_specialize=_NUMBERS)
def statistics_kernel(
    x, added, shortcut, total, partials, num_pixels, num_chunks, num_steps,
    GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    INPUT_BIAS: tl.constexpr, RESIDUAL: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One chunk of `num_steps` tiles of x [B, H * W, C] to its part of partials [B, 3, GROUPS, chunks] float32.

    The three are M, drift and squares; of x + added [C] with INPUT_BIAS, else of x. With RESIDUAL they are those of
    x + added + shortcut, which goes to `total`, as rounded there.
    """
    CHANNELS: tl.constexpr = GROUPS * PER_GROUP
    chunk = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    channel, is_channel = _channels(GROUPS, PER_GROUP, PADDED)
    pixel = tl.arange(0, BLOCK)
    first = chunk * num_steps * BLOCK
    length = tl.minimum(num_pixels - first, num_steps * BLOCK)
    at = (image * num_pixels + first) * CHANNELS + pixel[:, None] * CHANNELS + channel[None, :]
    if INPUT_BIAS or RESIDUAL:
        bias = tl.load(added + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    mean = tl.zeros([BLOCK, GROUPS * PADDED], tl.float32)
    spread = tl.zeros([BLOCK, GROUPS * PADDED], tl.float32)
    for step in range(tl.cdiv(length, BLOCK)):
        inside = (pixel < length - step * BLOCK)[:, None] & is_channel[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL:
            values += bias
            values += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
            stored = _rounded(values, total.dtype.element_ty, INTERPRETED)
            tl.store(total + at, stored, mask=inside)
            values = stored.to(tl.float32)
        distance = tl.where(inside, values - mean, 0.0)
        mean += distance * (1.0 / (step + 1))
        spread += distance * (values - mean)
        at += BLOCK * CHANNELS
    if INPUT_BIAS:
        mean += bias
    count = tl.where(is_channel[None, :], tl.cdiv(tl.maximum(length - pixel, 0), BLOCK)[:, None], 0).to(
        tl.float32
    )
    number = (length * PER_GROUP).to(tl.float32)
    # A place without a value has a mean far from all others, 0 or its bias: its count of 0 leaves it out.
    center = _sum_by_group(count * mean, GROUPS, PADDED) / number
    apart = mean - tl.reshape(tl.broadcast_to(center[:, None], [GROUPS, PADDED]), [GROUPS * PADDED])[None, :]
    drift = _sum_by_group(count * apart, GROUPS, PADDED) / number
    squares = _sum_by_group(spread + count * apart * apart, GROUPS, PADDED)
    at = partials + (image * 3 * GROUPS + tl.arange(0, GROUPS)) * num_chunks + chunk
    tl.store(at, center)
    tl.store(at + GROUPS * num_chunks, drift)
    tl.store(at + 2 * GROUPS * num_chunks, squares)


@triton.jit(do_not_specialize=[*_NUMBERS, "chunk_pixels", "eps"])
def combination_kernel(
    partials, input_bias, weight, affine, num_pixels, num_chunks, chunk_pixels, eps,
    GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, PADDED: tl.constexpr, JOINED: tl.constexpr, BLOCK: tl.constexpr,
    INPUT_BIAS: tl.constexpr,
):  # fmt: skip
    """The chunks of JOINED groups to their part of affine [B, 4, C] float32; BLOCK chunks at a time.

    The four are the centre, what its rounding left out, the scale, and what its rounding left out.
    """
    group = tl.program_id(0) * JOINED + tl.arange(0, JOINED)
    image = tl.program_id(1).to(tl.int64)
    rows = partials + ((image * 3 * GROUPS + group) * num_chunks)[:, None]
    block = tl.arange(0, BLOCK)
    sums = tl.zeros([JOINED, BLOCK], tl.float64)
    for start in range(0, num_chunks, BLOCK):
        chunk = start + block
        inside = (chunk < num_chunks)[None, :]
        count = tl.minimum(num_pixels - chunk * chunk_pixels, chunk_pixels)[None, :].to(tl.float64)
        at = rows + chunk[None, :]
        center = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        drift = tl.load(at + GROUPS * num_chunks, mask=inside, other=0.0).to(tl.float64)
        sums += count * (center + drift)
    mean = tl.sum(sums, 1)[:, None] / num_pixels
    sums = tl.zeros([JOINED, BLOCK], tl.float64)
    for start in range(0, num_chunks, BLOCK):
        chunk = start + block
        inside = (chunk < num_chunks)[None, :]
        count = tl.minimum(num_pixels - chunk * chunk_pixels, chunk_pixels)[None, :].to(tl.float64)
        at = rows + chunk[None, :]
        center = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        drift = tl.load(at + GROUPS * num_chunks, mask=inside, other=0.0).to(tl.float64)
        squares = tl.load(at + 2 * GROUPS * num_chunks, mask=inside, other=0.0).to(tl.float64)
        apart = center + drift - mean
        sums += tl.where(inside, squares + count * PER_GROUP * (apart * apart - drift * drift), 0.0)
    variance = tl.sum(sums, 1)[:, None] / num_pixels / PER_GROUP
    variance = tl.where(variance < 0, 0.0, variance)  # by a rounding of a flat map; a NaN stays one
    within = tl.arange(0, PADDED)[None, :]
    channel = group[:, None] * PER_GROUP + within
    is_channel = (within < PER_GROUP) & (group[:, None] >= 0)
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float64) / tl.sqrt(variance + eps)
    center = tl.zeros([JOINED, PADDED], tl.float64) + mean
    if INPUT_BIAS:
        center -= tl.load(input_bias + channel, mask=is_channel, other=0.0).to(tl.float64)
    at = affine + image * 4 * GROUPS * PER_GROUP + channel
    for exact in tl.static_range(2):
        value = scale if exact else center
        rounded = value.to(tl.float32)
        tl.store(at, rounded, mask=is_channel)
        tl.store(at + GROUPS * PER_GROUP, (value - rounded.to(tl.float64)).to(tl.float32), mask=is_channel)
        at += 2 * GROUPS * PER_GROUP


@triton.jit(do_not_specialize=_NUMBERS)
def normalisation_kernel(
    x, affine, bias, out, num_pixels, num_steps,
    GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SWISH: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """`num_steps` tiles of x [B, H * W, C] to out in the same form."""
    CHANNELS: tl.constexpr = GROUPS * PER_GROUP
    image = tl.program_id(1).to(tl.int64)
    channel, is_channel = _channels(GROUPS, PER_GROUP, PADDED)
    at = affine + image * 4 * CHANNELS + channel
    center = tl.load(at, mask=is_channel, other=0.0)[None, :]
    scale = tl.load(at + 2 * CHANNELS, mask=is_channel, other=0.0)[None, :]
    if x.dtype.element_ty == tl.float32:
        center_tail = tl.load(at + CHANNELS, mask=is_channel, other=0.0)[None, :]
        scale_tail = tl.load(at + 3 * CHANNELS, mask=is_channel, other=0.0)[None, :]
    shift = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    pixel = tl.arange(0, BLOCK)
    first = tl.program_id(0) * num_steps * BLOCK
    length = tl.minimum(num_pixels - first, num_steps * BLOCK)
    at = (image * num_pixels + first) * CHANNELS + pixel[:, None] * CHANNELS + channel[None, :]
    for step in range(tl.cdiv(length, BLOCK)):
        inside = (pixel < length - step * BLOCK)[:, None] & is_channel[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        distance = values - center
        y = shift
        if x.dtype.element_ty == tl.float32:
            back = distance - values
            tail = (values - (distance - back)) - (center + back) - center_tail
            y = tl.fma(distance, scale_tail, tl.fma(tail, scale, y))
        y = tl.fma(distance, scale, y)
        if SWISH:
            divisor = 1.0 + tl.exp(-y)
            # The plain division may be two steps of float32 beside, which 16 bits do not show, and is faster.
            y = tl.div_rn(y, divisor) if x.dtype.element_ty == tl.float32 else y / divisor
        tl.store(out + at, _rounded(y, out.dtype.element_ty, INTERPRETED), mask=inside)
        at += BLOCK * CHANNELS
