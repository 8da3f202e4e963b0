"""Write reference tensors of Wan 2.2's kind, made by diffusers' own classes from tiny random weights.

    python tools/make_wan_goldens.py runs/goldens

`golden_wan22_transformer`: WanTransformer3DModel with 48 channels and a timestep per token, as 2.2 is given an image
and as an in-context source is. `golden_wan22_vae`: AutoencoderKLWan with 2.2's residual blocks, patches of 2x2 pixels
and 48 channels, latents normalised, whole and in tiles. Keys of the safetensors: `state_dict.*`, `input.*`, `mid.*`,
`output*`; the .json beside each says the configuration and what was done.
"""

import argparse
import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from icve.models.wan.tiny import VAE_22
from icve.runtime.atomic import new_folder

TRANSFORMER = {
    "num_attention_heads": 4,
    "attention_head_dim": 24,  # 8 channels along each axis
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 40,
    "ffn_dim": 208,
    "num_layers": 2,
}
TEXT_ROWS = 16
TILE, STRIDE = 64, 32  # pixels


def randomise(model: nn.Module) -> nn.Module:
    """Weights in which no parameter is without effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if name.endswith("bias"):
                parameter.copy_(0.05 * noise)
            elif "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif "scale_shift_table" in name:
                parameter.copy_(0.15 * noise)
            else:
                parameter.copy_(noise * max(0.05, parameter[0].numel() ** -0.5))
    return model.eval()


@torch.no_grad()
def transformer() -> tuple[dict[str, Tensor], dict]:
    """Tensors and description of the transformer."""
    model = randomise(WanTransformer3DModel(**TRANSFORMER))
    inputs = {
        "noisy_latents": torch.randn(2, 48, 3, 4, 6),
        "source_latents": torch.randn(2, 48, 3, 4, 6),
        "timestep": torch.tensor([250.0, 875.0]),
        "text_states": torch.randn(2, TEXT_ROWS, TRANSFORMER["text_dim"]),
        "text_lengths": torch.tensor([9, 4]),
    }
    latents, source, time = inputs["noisy_latents"], inputs["source_latents"], inputs["timestep"][:, None]
    inputs["text_states"] *= (torch.arange(TEXT_ROWS) < inputs["text_lengths"][:, None])[..., None]
    found = {}

    def run(name: str, latents: Tensor, timestep: Tensor) -> None:
        hooks = [
            block.register_forward_hook(lambda _, given, out, n=n: found.__setitem__(f"mid.{name}.blocks.{n}", out))
            for n, block in enumerate(model.blocks)
        ]
        found[name] = model(latents, timestep, inputs["text_states"], return_dict=False)[0]
        for hook in hooks:
            hook.remove()

    run("output_t2v", latents, inputs["timestep"])
    frame, clip = 2 * 3, 3 * 2 * 3  # tokens
    run("output_image", latents, torch.cat([torch.zeros(2, frame), time.expand(2, clip - frame)], 1))
    rope = model.rope.forward
    model.rope.forward = lambda x: tuple(torch.cat([turns, turns], 1) for turns in rope(x[:, :, : x.shape[2] // 2]))
    times = torch.cat([torch.zeros(2, clip), time.expand(2, clip)], 1)
    run("output_in_context", torch.cat([source, latents], 2), times)
    found["output_in_context"] = found["output_in_context"][:, :, 3:]
    tensors = {f"input.{key}": value for key, value in inputs.items()} | found
    notes = {
        "text": "rows beyond text_lengths are zero, and all rows are attended",
        "output_t2v": "one timestep for all tokens",
        "output_image": "the first latent frame at timestep 0, the others at t",
        "output_in_context": "[source at timestep 0 | target at t], both numbered from the origin; of the target alone",
    }
    return with_state(model, tensors), {"config": dict(TRANSFORMER)} | notes


@torch.no_grad()
def vae() -> tuple[dict[str, Tensor], dict]:
    """Tensors and description of the codec."""
    mean, std = torch.randn(48), 0.5 + torch.rand(48)
    config = VAE_22 | {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
    model = randomise(AutoencoderKLWan(**config))
    model.decoder.conv_out.weight.mul_(0.2)  # few pixels are clamped
    mean, std = (torch.tensor(config[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    video = torch.rand(1, 3, 5, 64, 96) * 2 - 1
    tensors = {"input.video": video}

    def run(ending: str) -> None:
        # diffusers compares its tiles with patches when it encodes, and with pixels when it decodes.
        if ending:
            model.enable_tiling(TILE // 2, TILE // 2, STRIDE // 2, STRIDE // 2)
        tensors[f"output_latents{ending}"] = (model.encode(video).latent_dist.mode() - mean) / std
        if ending:
            model.enable_tiling(TILE, TILE, STRIDE, STRIDE)
        tensors[f"output_decoded{ending}"] = model.decode(tensors["output_latents"] * std + mean).sample

    run("")
    run("_tiled")
    notes = {
        "output_latents": "(mode of the posterior - mean) / std",
        "output_decoded": "of output_latents, clamped to [-1, 1]",
        "tiles": f"output_*_tiled: of {TILE} pixels, {STRIDE} apart",
    }
    return with_state(model, tensors), {"config": config} | notes


def with_state(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {f"state_dict.{key}": value for key, value in model.state_dict().items()}
    return {key: value.detach().clone().contiguous() for key, value in (state | tensors).items()}


def make_goldens(folder: Path, seed: int = 22) -> Path:
    """Write them to `folder`, whole or not at all, and return it.

    Raises:
        FileExistsError: `folder` holds something.
    """
    with new_folder(folder) as partial:
        for name, make, kind in (
            ("golden_wan22_transformer", transformer, "WanTransformer3DModel"),
            ("golden_wan22_vae", vae, "AutoencoderKLWan"),
        ):
            torch.manual_seed(seed)
            tensors, notes = make()
            outputs = {
                key: {"shape": list(value.shape), "std": value.std().item(), "absmax": value.abs().max().item()}
                for key, value in tensors.items()
                if key.startswith("output")
            }
            described = {"name": name, "model": f"diffusers {diffusers.__version__} {kind}", "weight_seed": seed}
            described |= notes | {"outputs": outputs, "torch": torch.__version__, "suggested_tolerance": {"atol": 2e-5}}
            save_file(tensors, partial / f"{name}.safetensors")
            (partial / f"{name}.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=22, help="of the weights and inputs (default: 22)")
    arguments = parser.parse_args(argv)
    try:
        print(make_goldens(arguments.folder, arguments.seed))
    except FileExistsError as error:
        print(f"make_wan_goldens: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
