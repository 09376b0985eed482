"""Many datagrams a system call: recvmmsg(2), which Python has no function for. One each elsewhere than on Linux.

A datagram that is received by itself costs 1.2 us here, of which a third is the way into the kernel and back; one of
several half a microsecond less (bench/README.md).
"""

import ctypes
import errno
import os
import socket
import struct
import sys

PLACES = 16
"""Received at once, at most. More are hardly faster, and where datagrams are large each place fills its 64 KiB."""


class _Buffer(ctypes.Structure):  # struct iovec, readv(2)
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr, recvmsg(2)
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("buffers", ctypes.c_void_p),
        ("buffer_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):  # struct mmsghdr, recvmmsg(2)
    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


_BEHIND = ctypes.sizeof(_Message) - _Message.length.offset - 4
_lengths_of = struct.Struct("=" + f"{_Message.length.offset}xI{_BEHIND}x" * PLACES).unpack_from
# Where others have it, FreeBSD for one, what it writes to is laid out otherwise.
_recvmmsg = getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None) if sys.platform == "linux" else None


class Receiver:
    """Receives from one socket, in the order of arrival, and never waits.

    Of a datagram that is longer than `max_bytes` that much is received: ask for a byte more than is allowed.
    """

    def __init__(self, bound: socket.socket, max_bytes: int) -> None:
        self._socket, self._max_bytes = bound, max_bytes
        room = bytearray(PLACES * max_bytes)
        self._room = memoryview(room)
        self._starts = range(0, PLACES * max_bytes, max_bytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(room))
        self._buffers = (_Buffer * PLACES)(*(_Buffer(address + start, max_bytes) for start in self._starts))
        headers = (_Header(buffers=ctypes.addressof(buffer), buffer_count=1) for buffer in self._buffers)
        self._messages = (_Message * PLACES)(*(_Message(header) for header in headers))

    def receive(self, at_most: int = PLACES) -> list[bytes]:
        """So many datagrams or fewer; none where none waits. Raises OSError where the socket has an error to tell."""
        if _recvmmsg is None:
            return self._receive_one()
        count = _recvmmsg(self._socket.fileno(), self._messages, min(at_most, PLACES), socket.MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number in {errno.EAGAIN, errno.EINTR}:
                return []
            raise OSError(number, os.strerror(number))
        room = self._room
        return [
            bytes(room[start : start + length])
            for start, length, _ in zip(self._starts, _lengths_of(self._messages), range(count), strict=False)
        ]

    def _receive_one(self) -> list[bytes]:
        try:
            return [self._socket.recv(self._max_bytes, socket.MSG_DONTWAIT)]
        except (BlockingIOError, InterruptedError):
            return []
