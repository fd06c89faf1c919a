"""What a step of the array does."""

from amaranth.lib import enum

__all__ = ["Op"]


class Op(enum.Enum, shape=2):
    """What a step does."""

    FORWARD = 0
    UPDATE = 1
    HOST_READ = 2
    HOST_WRITE = 3
