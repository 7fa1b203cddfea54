"""One writer, many readers: a ring in shared memory for those on this node, ZMQ over TCP for the others.

``Writer`` and ``open_local_reader`` / ``open_remote_reader`` move frames; ``MessageCodec`` turns messages with arrays into frames
and back.
"""

from enginehouse_engine.message_queue.address import QueueAddress
from enginehouse_engine.message_queue.codec import MessageCodec
from enginehouse_engine.message_queue.local_reader import LocalReader, open_local_reader
from enginehouse_engine.message_queue.received import Reader, Received
from enginehouse_engine.message_queue.remote_reader import RemoteReader, open_remote_reader
from enginehouse_engine.message_queue.writer import Writer
from enginehouse_engine.shared_memory_size import rank_shared_memory_bytes, shared_memory_bytes

__all__ = [
    "LocalReader",
    "MessageCodec",
    "QueueAddress",
    "Reader",
    "Received",
    "RemoteReader",
    "Writer",
    "open_local_reader",
    "open_remote_reader",
    "rank_shared_memory_bytes",
    "shared_memory_bytes",
]
