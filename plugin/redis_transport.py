"""kombu's Redis, made safe for a worker whose broker goes away while it works. Loaded where the settings name Redis."""

from kombu.transport import redis, virtual


class RingQoS(redis.QoS):
    """What has rung is done with, whether or not the broker is there to hear so.

    kombu's own still counts a message whose acknowledgement failed as being worked on: with one at a time, the worker
    never asks for another, and never learns that its connection is gone.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)


class RingChannel(redis.Channel):
    QoS = RingQoS


class RingTransport(redis.Transport):
    Channel = RingChannel
