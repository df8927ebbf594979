"""Tiny price catalogs, so that SkyPilot needs no network: `python catalogs.py HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

GPUS = ("A100", "H100", "T4")
COLUMNS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch"
)
MACHINES = (
    ("p4d.24xlarge", "A100", 8, 96, 1152, {"us-east-1": (32.77, 11.57), "us-west-2": (32.77, 9.83)}),
    ("p5.48xlarge", "H100", 8, 192, 2048, {"us-east-1": (55.04, 20.00)}),
    ("m6i.2xlarge", "", "", 8, 32, {"us-east-1": (0.384, 0.15), "us-west-2": (0.384, 0.14)}),
)


def write(home: Path) -> None:
    """Write them where SkyPilot looks before it asks the network."""
    root = home / ".sky" / "catalogs" / "v8"
    rows = [
        f"{name},{gpu},{count},{cores},{memory},,{price},{spot},{region},{region}{zone},x86_64"
        for name, gpu, count, cores, memory, prices in MACHINES
        for region, (price, spot) in prices.items()
        for zone in "ab"
    ]
    files = {
        "common/accelerators.csv": ["AcceleratorName,Clouds", *(f"{gpu},\"['AWS']\"" for gpu in GPUS)],
        "common/metadata.csv": ["GPU,MemoryGB,Manufacturer", *(f"{gpu},80,NVIDIA" for gpu in GPUS)],
        "kubernetes/images.csv": ["Tag,Region,OS,OSVersion,ImageId,CreationDate"],
        "aws/vms.csv": [COLUMNS, *rows],
        "aws/images.csv": ["Tag,Region,OS,OSVersion,ImageId,CreationDate,BaseImageId"],
        "aws/instance_quota_mapping.csv": ["InstanceType,SpotInstanceCode,OnDemandInstanceCode"],
    }
    for name, lines in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
