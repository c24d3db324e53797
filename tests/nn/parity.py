"""Our parameters under the names of diffusers, and weights at which parity can fail."""

import re

import torch
from torch import Tensor, nn

Rules = list[tuple[str, str]]

RES: Rules = [(r"\.skip\.", ".conv_shortcut."), (r"norm_out\.", "conv_norm_out.")]

UNET: Rules = [
    *RES,
    (r"^time\.", "time_embedding."),
    (r"^(down|mid|up)\.", r"\1_blocks."),
    (r"^mid_blocks", "mid_block"),
    (r"\.res\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"^(down|up)(_blocks\.\d+)\.resample\.", r"\1\2.\1samplers.0."),
    (r"\.time\.", ".time_emb_proj."),
    (r"\.blocks\.", ".transformer_blocks."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.net.2."),
]

AUTOENCODER: Rules = [
    *RES,
    (r"\.(down|up)\.(\d+)\.\d+\.conv\.", r".\1_blocks.\2.\1samplers.0.conv."),
    (r"\.(down|up)\.(\d+)\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.mid\.1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.1\.attention\.to_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.1\.attention\.", ".mid_block.attentions.0."),
    (r"\.mid\.0\.", ".mid_block.resnets.0."),
    (r"\.mid\.[12]\.", ".mid_block.resnets.1."),
]


def renamed(model: nn.Module, rules: Rules) -> dict[str, Tensor]:
    """The state of `model`, each name after every rule in turn."""
    state = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    assert len(state) == len(model.state_dict())
    return state


def roughen(model: nn.Module, seed: int = 0) -> None:
    """Noise on every parameter, since zeros and ones hide whatever stands behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter.dtype))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
