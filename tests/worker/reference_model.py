"""A slow second implementation of the model in float64, one row and one token pair at a time.

It shares no code with the package and keeps no caches in common layouts: plain lists of keys and values per row.
Weights come under the official names.
"""

import math

import torch
from torch.nn.functional import conv2d, gelu, group_norm, interpolate, pixel_shuffle, pixel_unshuffle, silu


def _ln(x, weight=None, bias=None):
    x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)
    return x if weight is None else x * weight + bias


def _linear(x, weight, bias=None):
    return x @ weight.T + (0 if bias is None else bias)


def _rope(x, scale, largest):
    """x: [L, D] of one head."""
    places = [divmod(token, scale[1]) for token in range(scale[0] * scale[1])]
    quarter = x.shape[1] // 4
    out = x.clone()
    for axis in (0, 1):
        # The position is rounded from a float32 product.
        step = torch.tensor(largest[axis] / scale[axis], dtype=torch.float32)
        position = torch.tensor([torch.round(torch.tensor(float(place[axis])) * step) for place in places])
        for pair in range(quarter):
            angle = position.double() * 10000.0 ** (-2 * pair / (x.shape[1] // 2))
            i = 2 * (axis * quarter + pair)
            out[:, i] = x[:, i] * angle.cos() - x[:, i + 1] * angle.sin()
            out[:, i + 1] = x[:, i] * angle.sin() + x[:, i + 1] * angle.cos()
    return out


class ReferenceModel:
    """Weights `w` (official names, blocks as `blocks.<l>`), all float64."""

    def __init__(self, w, depth, heads, pool_heads, schedule, largest, patchify, z):
        self.w = {name: tensor.double() for name, tensor in w.items()}
        self.depth, self.heads, self.pool_heads = depth, heads, pool_heads
        self.schedule, self.largest, self.patchify, self.z = schedule, largest, patchify, z

    def text(self, features):
        """One row: [n, Ct5] to (cond [C], source of cross-attention [n, C])."""
        w = self.w
        x = features.double()
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w["text_norm.weight"]
        q = w["text_proj_for_sos.ca.mat_q"][0]  # [heads, d]
        k, v = _linear(x, w["text_proj_for_sos.ca.mat_kv.weight"]).chunk(2, -1)
        v = v + w["text_proj_for_sos.ca.v_bias"]
        d = q.shape[1]
        pooled = []
        for head in range(self.pool_heads):
            part = slice(head * d, (head + 1) * d)
            pooled.append(torch.softmax(k[:, part] @ q[head] / math.sqrt(d), 0) @ v[:, part])
        cond = _linear(
            torch.cat(pooled), w["text_proj_for_sos.ca.proj.weight"], w["text_proj_for_sos.ca.proj.bias"]
        )
        y = gelu(_linear(x, w["text_proj_for_ca.0.weight"], w["text_proj_for_ca.0.bias"]), approximate="tanh")
        return cond, _linear(y, w["text_proj_for_ca.2.weight"], w["text_proj_for_ca.2.bias"])

    def block(self, layer, x, cond, text, cache, scale):
        """One row: [L, C] and this layer's cache (lists of [n, C]) to ([L, C], entropy [L])."""
        w = {
            name[len(f"blocks.{layer}.") :]: t
            for name, t in self.w.items()
            if name.startswith(f"blocks.{layer}.")
        }
        shared = _linear(silu(cond), self.w["shared_ada_lin.1.weight"], self.w["shared_ada_lin.1.bias"])
        gamma1, gamma2, scale1, scale2, shift1, shift2 = shared.view(6, -1) + w["ada_gss"][0, 0]
        h = _ln(x) * (1 + scale1) + shift1
        zeros = torch.zeros_like(w["sa.q_bias"])
        qkv = _linear(h, w["sa.mat_qkv.weight"], torch.cat((w["sa.q_bias"], zeros, w["sa.v_bias"])))
        q, k, v = qkv.chunk(3, -1)
        d = x.shape[1] // self.heads
        factor = w["sa.scale_mul_1H11"].flatten().clamp_max(math.log(100)).exp()
        q_heads, k_heads = [], []
        for head in range(self.heads):
            part = slice(head * d, (head + 1) * d)
            unit_q = q[:, part] / q[:, part].norm(dim=-1, keepdim=True).clamp_min(1e-12)
            unit_k = k[:, part] / k[:, part].norm(dim=-1, keepdim=True).clamp_min(1e-12)
            q_heads.append(_rope(unit_q * factor[head], scale, self.largest))
            k_heads.append(_rope(unit_k, scale, self.largest))
        cache.append((torch.stack(k_heads), v))
        all_k = torch.cat([entry[0] for entry in cache], 1)
        all_v = torch.cat([entry[1] for entry in cache], 0)
        outs, entropies = [], []
        for head in range(self.heads):
            a = torch.softmax(q_heads[head] @ all_k[head].T, -1)
            entropies.append(torch.special.entr(a).sum(-1))
            outs.append(a @ all_v[:, head * d : (head + 1) * d])
        x = x + gamma1 * _linear(torch.cat(outs, -1), w["sa.proj.weight"], w["sa.proj.bias"])
        h = _linear(_ln(x, w["ca_norm.weight"], w["ca_norm.bias"]), w["ca.mat_q.weight"], w["ca.mat_q.bias"])
        tk, tv = _linear(text, w["ca.mat_kv.weight"]).chunk(2, -1)
        tv = tv + w["ca.v_bias"]
        outs = []
        for head in range(self.heads):
            part = slice(head * d, (head + 1) * d)
            outs.append(torch.softmax(h[:, part] @ tk[:, part].T / math.sqrt(d), -1) @ tv[:, part])
        x = x + _linear(torch.cat(outs, -1), w["ca.proj.weight"], w["ca.proj.bias"])
        h = gelu(
            _linear(_ln(x) * (1 + scale2) + shift2, w["ffn.fc1.weight"], w["ffn.fc1.bias"]),
            approximate="tanh",
        )
        return x + gamma2 * _linear(h, w["ffn.fc2.weight"], w["ffn.fc2.bias"]), torch.stack(entropies).mean(0)

    def head(self, x, cond):
        scale, shift = _linear(
            silu(cond), self.w["head_nm.ada_lin.1.weight"], self.w["head_nm.ada_lin.1.bias"]
        ).chunk(2)
        return _linear(_ln(x) * (1 + scale) + shift, self.w["head.weight"], self.w["head.bias"])

    def record(self, prompts, negatives, cfg, tau, insertion):
        """Generate greedily; returns the recording in the layout of `io.safetensors`."""
        guided = any(c != 1 for c in cfg)
        rows = list(prompts)
        if guided:
            rows += [
                self.w["cfg_uncond"][: len(p)] if n is None else n
                for p, n in zip(prompts, negatives, strict=True)
            ]
        texts = [self.text(row) for row in rows]
        batch = len(prompts)
        caches = [[[] for _ in range(self.depth)] for _ in rows]
        factor = 2 if self.patchify else 1
        last = [size * factor for size in self.schedule[-1]]
        total = torch.zeros(batch, self.z, *last, dtype=torch.float64)
        record = {}
        for s, scale in enumerate(self.schedule):
            size = [side * factor for side in scale]
            if s == 0:
                xs = [(cond + self.w["pos_start"][0, 0])[None] for cond, _ in texts]
            else:
                maps = interpolate(total, size, mode="bilinear", align_corners=False)
                maps = pixel_unshuffle(maps, 2) if self.patchify else maps
                tokens = maps.flatten(2).transpose(1, 2)
                xs = [
                    _linear(tokens[r % batch], self.w["word_embed.weight"], self.w["word_embed.bias"])
                    for r in range(len(rows))
                ]
            xs = [x + self.w["lvl_embed.weight"][s] for x in xs]
            for layer in range(self.depth):
                entropy = []
                for r in range(len(rows)):
                    xs[r], e = self.block(layer, xs[r], *texts[r], caches[r][layer], scale)
                    entropy.append(e)
                record[f"entropy.{layer}.{s}"] = torch.stack(entropy)
                if cfg[s] != 1 and layer - self.depth in insertion:
                    mixed = [cfg[s] * xs[b] + (1 - cfg[s]) * xs[b + batch] for b in range(batch)]
                    xs = mixed + [m.clone() for m in mixed]
            used = len(rows) if cfg[s] != 1 and 0 in insertion else batch
            logits = torch.stack([self.head(xs[r], texts[r][0]) for r in range(used)])
            record[f"logits.{s}"] = logits
            guided_logits = logits / tau[s]
            if used > batch:
                guided_logits = cfg[s] * guided_logits[:batch] + (1 - cfg[s]) * guided_logits[batch:]
            pairs = guided_logits.unflatten(-1, (-1, 2))
            bits = (pairs[..., 1] > pairs[..., 0]).double().transpose(1, 2).unflatten(-1, scale)
            bits = pixel_shuffle(bits, 2) if self.patchify else bits
            record[f"bits.{s}"] = bits.permute(0, 2, 3, 1)[:, None].to(torch.uint8)
            codes = (2 * bits - 1) / math.sqrt(self.z)
            if s < len(self.schedule) - 1:
                codes = interpolate(codes, last, mode="bilinear", align_corners=False)
            total = total + codes
        record["latent"] = total
        return record


def decode(w, codes, num_levels):
    """VAE decoder from its (plain-named) weights: [B, z, h, w] to [B, H, W, 3] uint8 in BGR order."""
    w = {name.removeprefix("decoder."): t.double() for name, t in w.items() if name.startswith("decoder.")}

    def conv(x, name):
        weight = w[f"{name}.weight"]
        return conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(x, name):
        return silu(group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6))

    def residual(x, name):
        h = conv(norm(x, f"{name}.norm1"), f"{name}.conv1")
        h = conv(norm(h, f"{name}.norm2"), f"{name}.conv2")
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in w else x)

    x = conv(codes.double(), "conv_in")
    x = residual(residual(x, "mid.block_1"), "mid.block_2")
    for level in reversed(range(num_levels)):
        for block in range(3):
            x = residual(x, f"up.{level}.block.{block}")
        if level:
            x = conv(interpolate(x, scale_factor=2, mode="nearest"), f"up.{level}.upsample.conv")
    x = conv(norm(x, "norm_out"), "conv_out").clamp(-1, 1)
    return ((x + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1)
