"""Compares torchvision's networks as Ottava reads them with what PyTorch answers.

    python tools/compare_pretrained.py DIR [--ottava COMMAND] [NETWORK...]

For each NETWORK (torchvision's resnet18, resnet50, mobilenet_v2; `timm:NAME` of timm's; `resnet20b` and
`resnet18_cifar` with the names that CIFAR's repositories give their layers) a checkpoint with weights and BatchNorm statistics of a
seed is written to DIR in six forms: `torch.save` in both of its formats, safetensors in f32 and f16, and ONNX
by both of PyTorch's exporters. `ottava eval --logits` answers for pictures in DIR/pictures; the largest
difference is printed, relative to the largest logit, and must be below 1e-4.

Needs torch, torchvision, safetensors, onnx, onnxscript and Pillow, and timm for its networks.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

PICTURES, SIZE, BOUND = 8, 224, 1e-4
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def pictures(folder):
    """Waves and noise, as files and as a network takes them."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    images = []
    for i in range(PICTURES):
        waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.uniform(0, 6, (3, 3))]
        pixels = 128 + 90 * np.stack(waves, -1) + random.normal(0, 20, (SIZE, SIZE, 3))
        images.append(np.clip(pixels, 0, 255).astype(np.uint8))
        for split in ("train", "val"):
            path = folder / split / "picture" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[-1]).save(path)
    unit = torch.from_numpy(np.stack(images)).float() / 255
    return ((unit - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


class CifarBlock(torch.nn.Module):
    """A basic or a bottleneck block, its shortcut named as the caller says."""

    def __init__(self, channels, width, stride, shortcut):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        project = [torch.nn.Conv2d(channels, width, 1, stride, bias=False), torch.nn.BatchNorm2d(width)]
        setattr(self, shortcut, torch.nn.Sequential(*(project if stride > 1 or channels != width else [])))
        self.side = shortcut

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + getattr(self, self.side)(x))


class Cifar(torch.nn.Module):
    """A residual network with a 3x3 stem: widths and blocks of its stages, and the names of two layers."""

    def __init__(self, widths, blocks, shortcut, classifier):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(widths[0])
        channels, self.stages = widths[0], len(widths)
        for stage, width in enumerate(widths):
            layers = []
            for i in range(blocks):
                layers.append(CifarBlock(channels, width, 2 if stage and not i else 1, shortcut))
                channels = width
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*layers))
        setattr(self, classifier, torch.nn.Linear(channels, 10))
        self.classifier = classifier

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.classifier)(x.mean((2, 3)))


def build(name):
    if name == "resnet20b":
        return Cifar([16, 32, 64], 3, "downsample", "fc")
    if name == "resnet18_cifar":
        return Cifar([64, 128, 256, 512], 2, "shortcut", "linear")
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"))
    return getattr(torchvision.models, name)(weights=None)


def network(name):
    """Seeded weights, and statistics such as training leaves: means and variances that differ by channel."""
    torch.manual_seed(0)
    model = build(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    # Statistics of noise: what each layer sees stays near one in size, however deep it lies.
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, 3, 96, 96))
    return model.eval()


def files(model, name, folder):
    """Every form, with the network whose answer is expected of it."""
    state = model.state_dict()
    half = build(name).eval()
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    half.load_state_dict(halved)
    path = lambda suffix: folder / f"{name.replace(':', '-')}{suffix}"
    torch.save(state, path(".pth"))
    torch.save({"state_dict": state, "epoch": 90}, path("-legacy.pt"), _use_new_zipfile_serialization=False)
    save_file(state, path(".safetensors"))
    save_file(halved, path("-f16.safetensors"))
    forms = {path(".pth"): model, path("-legacy.pt"): model, path(".safetensors"): model, path("-f16.safetensors"): half}
    for dynamo in (False, True):
        out = path(f"-{'dynamo' if dynamo else 'torchscript'}.onnx")
        image = torch.zeros(1, 3, SIZE, SIZE)
        names = dict(input_names=["input"], output_names=["output"])
        if dynamo:
            batch = {"x": {0: torch.export.Dim("batch")}}
            torch.onnx.export(model, (image,), out, dynamo=True, external_data=False, dynamic_shapes=batch, verbose=False, **names)
        else:
            axes = {"input": {0: "batch"}, "output": {0: "batch"}}
            torch.onnx.export(model, (image,), out, dynamo=False, dynamic_axes=axes, **names)
        forms[out] = model
    return forms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("networks", nargs="*", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--ottava", default="ottava")
    args = parser.parse_args()
    images = pictures(args.dir / "pictures")
    worst = 0.0
    for name in args.networks:
        for path, model in files(network(name), name, args.dir).items():
            with torch.no_grad():
                expected = model(images).numpy()
            answer = args.dir / "answer.safetensors"
            command = [args.ottava, "eval", path, "--data", f"folder:{args.dir / 'pictures'}"]
            command += ["--preprocess", f"imagenet,crop={SIZE}", "--logits", answer, "--quiet"]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{path.name}: {done.stderr.strip()}")
            logits = load_file(answer)["logits"]
            difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
            worst = max(worst, difference)
            print(f"{path.name}: {difference:.1e} of the largest logit, {np.abs(expected).max():.3f}")
    sys.exit(f"beyond {BOUND}" if worst > BOUND else 0)


if __name__ == "__main__":
    main()
