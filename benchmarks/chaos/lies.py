"""What becomes of a true answer of a Triton server: every way in which one can be wrong and be known to be.

Pictures that are wrong and look right are not among the lies: nobody can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

CLIENTS = 8
LIES_FOR_S = 2.0
NO_ANSWER_FOR_S = 23.0  # so that calls are given up meanwhile
# A request has up to four calls, and each is made twice: of so many lies two were told to one call, which then fails.
FEW, ENOUGH = 3, 4 * CLIENTS + 1

Answer = Any  # a ModelInferResponse: the classes of protobuf have no types


@dataclass(frozen=True)
class Lie:
    """What becomes of a true answer.

    Attributes:
        change: returns the lie; it may break the call off instead.
        told: what requests may be told while there is no other server.
        always: what they may be told although there is one.
        two_faced: whether the golden images are spared.
        seconds, least: how long it lies, and how often, at least.
    """

    change: Callable[[Answer, grpc.ServicerContext], Answer]
    told: frozenset[int] = frozenset({502, 503})
    always: frozenset[int] = frozenset()
    two_faced: bool = True
    seconds: float = LIES_FOR_S
    least: int = ENOUGH


def _row_missing(answer: Answer, context: grpc.ServicerContext) -> Answer:
    images = answer.outputs[0]
    row_bytes = int(np.prod(images.shape[1:]))
    images.shape[0] -= 1
    answer.raw_output_contents[0] = answer.raw_output_contents[0][row_bytes:]
    return answer


def _other_shape(answer: Answer, context: grpc.ServicerContext) -> Answer:
    answer.outputs[0].shape[1:3] = [answer.outputs[0].shape[1] * 2, answer.outputs[0].shape[2] // 2]
    return answer


def _other_dtype(answer: Answer, context: grpc.ServicerContext) -> Answer:
    answer.outputs[0].datatype = "INT8"
    return answer


def _half_of_the_bytes(answer: Answer, context: grpc.ServicerContext) -> Answer:
    raw = answer.raw_output_contents[0]
    answer.raw_output_contents[0] = raw[: len(raw) // 2]
    return answer


def _flags_missing(answer: Answer, context: grpc.ServicerContext) -> Answer:
    del answer.outputs[1], answer.raw_output_contents[1]
    return answer


def _broken_off(answer: Answer, context: grpc.ServicerContext) -> Answer:
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def _never(answer: Answer, context: grpc.ServicerContext) -> Answer:
    while context.is_active():  # until the caller gives up
        time.sleep(0.05)
    return answer


def _not_ok(answer: Answer, context: grpc.ServicerContext) -> Answer:
    """Say what a graph says of pictures with a NaN."""
    answer.raw_output_contents[1] = bytes(len(answer.raw_output_contents[1]))
    return answer


def _black(answer: Answer, context: grpc.ServicerContext) -> Answer:
    """Show what a NaN looks like when nobody has flagged it."""
    answer.raw_output_contents[0] = bytes(len(answer.raw_output_contents[0]))
    return answer


BAD_OUTPUT = frozenset({500})

LIES: dict[str, Lie] = {
    "one row too few": Lie(_row_missing),
    "another shape": Lie(_other_shape),
    "another dtype": Lie(_other_dtype),
    "half of the bytes": Lie(_half_of_the_bytes),
    "an output missing": Lie(_flags_missing),
    "broken off in the middle": Lie(_broken_off),
    "no answer at all": Lie(_never, frozenset({503, 504}), seconds=NO_ANSWER_FOR_S, least=FEW),
    "pictures with NaN": Lie(
        _not_ok, frozenset({500, 503}), BAD_OUTPUT, two_faced=False, least=FEW
    ),
    "black pictures": Lie(_black, frozenset({500, 503}), BAD_OUTPUT, two_faced=False, least=FEW),
}
