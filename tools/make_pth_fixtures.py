"""Writes crates/interop/tests/fixtures/*.pth: state dicts as PyTorch saves them.

Needs PyTorch. Run it from the root of the repository:

    python tools/make_pth_fixtures.py
"""

import os
from collections import OrderedDict
from pathlib import Path

import torch

OUT = Path(__file__).parent.parent / "crates" / "interop" / "tests" / "fixtures"


def counting(*shape, dtype=torch.float32):
    count = 1
    for size in shape:
        count *= size
    return (torch.arange(count) - count // 2).to(dtype).reshape(shape)


class Hostile:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    # Every number format, and every kind of view.
    base = counting(4, 3, 2)
    everything = OrderedDict(
        f64=counting(2, 3, dtype=torch.float64) / 4,
        f32=counting(2, 3) / 4,
        f16=counting(2, 3, dtype=torch.float16) / 4,
        bf16=counting(2, 3, dtype=torch.bfloat16) / 4,
        i64=counting(2, 3, dtype=torch.int64),
        i32=counting(2, 3, dtype=torch.int32),
        i16=counting(2, 3, dtype=torch.int16),
        i8=counting(2, 3, dtype=torch.int8),
        u8=torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        bool=torch.tensor([True, False]),
        scalar=torch.tensor(7.5),
        empty=torch.zeros(0, 3),
        permuted=base.permute(2, 0, 1),
        sliced=base[1:4:2, :, 1],
        channels_last=counting(2, 3, 2, 2).to(memory_format=torch.channels_last),
        expanded=torch.tensor([[1.0], [2.0]]).expand(2, 3),
    )
    torch.save(everything, OUT / "everything.pth")

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    wrapped = OrderedDict((f"module.{k}", v) for k, v in model.state_dict().items())
    checkpoint = {"epoch": 3, "best": torch.tensor(91.5), "state_dict": wrapped, "note": None}
    torch.save(checkpoint, OUT / "checkpoint.pth")
    torch.save(checkpoint, OUT / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(
        OrderedDict((k, torch.nn.Parameter(v)) for k, v in model.state_dict().items() if v.is_floating_point()),
        OUT / "protocol4.pth",
        pickle_protocol=4,
    )
    torch.save({"state_dict": Hostile()}, OUT / "hostile.pth")
    torch.save(model, OUT / "module.pth")


if __name__ == "__main__":
    main()
