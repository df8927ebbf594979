"""The store for other people's code: a StorageWriter and StorageReader for torch.distributed.checkpoint."""

from fgtrain.dcp.reader import StoreReader
from fgtrain.dcp.record import checkpoints
from fgtrain.dcp.writer import StoreWriter

__all__ = ["StoreReader", "StoreWriter", "checkpoints"]
