"""Throw-away plain versions of operators that are not in the tree yet."""
import torch
import torch.nn.functional as F


def _bounds(x, offsets):
    return [0, x.shape[1]] if offsets is None else offsets.tolist()


def causal_conv1d(x, weight, bias=None, *, activation=None, initial_state=None, resets=None, offsets=None, return_last_state=False):
    B, L, D = x.shape
    W = weight.shape[1]
    bounds = _bounds(x, offsets)
    n = B if offsets is None else len(bounds) - 1
    state = x.new_zeros(n, W - 1, D) if initial_state is None else initial_state
    outs, lasts = [], []
    for s in range(1 if offsets is None else n):
        part = x if offsets is None else x[:, bounds[s]:bounds[s + 1]]
        before = state if offsets is None else state[s:s + 1]
        S = before.shape[1]
        full = torch.cat([before.to(x.dtype), part], 1)
        l = part.shape[1]
        y = torch.zeros_like(part) if bias is None else bias.to(x.dtype).expand_as(part).clone()
        if resets is not None:
            seg = resets.cumsum(1)
            segfull = torch.cat([torch.zeros(B, S, dtype=seg.dtype), seg], 1)
        for j in range(W):
            tap = full[:, S - (W - 1) + j:S - (W - 1) + j + l]
            if resets is not None:
                tap = tap * (segfull[:, S - (W - 1) + j:S - (W - 1) + j + l] == seg)[..., None]
            y = y + tap * weight[:, j]
        outs.append(y)
        last = full[:, full.shape[1] - S:]
        if resets is not None:
            last = last * (segfull[:, full.shape[1] - S:] == segfull[:, -1:])[..., None]
        lasts.append(last)
    y = torch.cat(outs, 1) if outs else x
    if activation:
        y = F.silu(y)
    return (y, torch.cat(lasts) if lasts else state) if return_last_state else y


def causal_conv1d_step(state, x, weight, bias=None, *, activation=None):
    y, s = causal_conv1d(x[:, None], weight, bias, activation=activation, initial_state=state, return_last_state=True)
    return y[:, 0], s


def gated_rms_norm(x, weight=None, gate=None, *, eps=1e-5, group_size=None, norm_before_gate=False):
    dt = x.dtype
    h = x.float() if dt != torch.float64 else x
    if gate is not None and not norm_before_gate:
        h = h * F.silu(gate.to(h.dtype))
    g = group_size or h.shape[-1]
    v = h.unflatten(-1, (-1, g))
    v = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + eps)
    h = v.flatten(-2)
    if weight is not None:
        h = h * weight
    if gate is not None and norm_before_gate:
        h = h * F.silu(gate.to(h.dtype))
    return h.to(dt)


def ssd_step(state, x, delta, A, B, C, D=None, z=None, *, delta_bias=None, delta_softplus=False, delta_limit=(0.0, float("inf"))):
    y, s = ssd(x[:, None], delta[:, None], A, B[:, None], C[:, None], D, None if z is None else z[:, None], delta_bias=delta_bias,
               delta_softplus=delta_softplus, delta_limit=delta_limit, initial_state=state, return_last_state=True)
    return y[:, 0], s


def ssd(x, delta, A, B, C, D=None, z=None, *, delta_bias=None, delta_softplus=False, delta_limit=(0.0, float("inf")), chunk_size=64,
        initial_state=None, resets=None, offsets=None, return_last_state=False):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    Bt, L, H, P = x.shape
    G, N = B.shape[2:]
    u = x.to(wide)
    d = delta.to(wide)
    if delta_bias is not None:
        d = d + delta_bias
    if delta_softplus:
        d = F.softplus(d)
    d = d.clamp(*delta_limit)
    bounds = _bounds(x, offsets)
    n = Bt if offsets is None else len(bounds) - 1
    state = u.new_zeros(n, H, P, N) if initial_state is None else initial_state
    Br, Cr = B.to(wide).repeat_interleave(H // G, 2), C.to(wide).repeat_interleave(H // G, 2)
    outs, lasts = [], []
    for s in range(1 if offsets is None else n):
        h = state if offsets is None else state[s:s + 1]
        a, b = (0, L) if offsets is None else (bounds[s], bounds[s + 1])
        for t in range(a, b):
            if resets is not None:
                h = h * (~resets[:, t])[:, None, None, None]
            h = h * torch.exp(d[:, t] * A)[..., None, None] + (d[:, t, :, None] * u[:, t])[..., None] * Br[:, t, :, None]
            outs.append((h * Cr[:, t, :, None]).sum(-1))
        lasts.append(h)
    y = torch.stack(outs, 1) if outs else torch.zeros_like(u)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D) * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    y = y.to(x.dtype)
    return (y, torch.cat(lasts)) if return_last_state else y
