"""Several processes as one: communicator, lockstep of layers, shards of rows. Nothing else knows of processes."""

from locoprop_lightning.distributed.batch import SharedBatch, join_batches, share_batch
from locoprop_lightning.distributed.communicator import Communicator, DataParallel, connect

__all__ = ["Communicator", "DataParallel", "SharedBatch", "connect", "join_batches", "share_batch"]
