"""Layers read again with their traces, by workers of this process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from chunkd.model import Caps, ChunkParams, Finding, Job, MeasureRule
from chunkd.where import tracing
from chunkd.where.trace import MOST_TRACE_BYTES, Trace, unpack
from chunkd.worker import protocol, spawn
from chunkd.worker.pool import Worker
from chunkd.worker.starter import RUN


@dataclass(frozen=True, slots=True)
class Traced(Finding):
    """A finding of kind `layer`, with the trace of its tar."""

    trace: Trace = field(default_factory=Trace, repr=False)


class TracesEnd(protocol.DaemonsEnd):
    """The asking end. Its `word` gives a layer's finding as a `Traced`. Holds a recipe and a trace at most."""

    _layer: Finding | None = None

    def word(self, job: Job | None) -> int | Finding | None:
        if self._layer is None:
            said = super().word(job)
            if not isinstance(said, Finding) or said.kind != "layer":
                return said
            self._layer = said
        if len(self._heard) < tracing.LENGTH_BYTES:
            return None
        size = int.from_bytes(self._heard[: tracing.LENGTH_BYTES], "little")
        if size > MOST_TRACE_BYTES:
            raise ValueError(f"a trace of {size} bytes")
        if len(self._heard) < tracing.LENGTH_BYTES + size:
            return None
        self._take(tracing.LENGTH_BYTES)
        layer, self._layer = self._layer, None
        said_of: dict[str, Any] = {one.name: getattr(layer, one.name) for one in fields(Finding)}
        return Traced(**said_of, trace=unpack(self._take(size), layer.uncompressed_bytes))


class Tracers(spawn.Starter):
    """Starts workers that trace. As `Starter` otherwise."""

    def __init__(self, params: ChunkParams, caps: Caps, courtesy: spawn.Courtesy, measure: MeasureRule) -> None:
        super().__init__(params, caps, courtesy, measure)
        self._asked = courtesy._asdict() | {"params": asdict(params), "caps": asdict(caps)}

    def start(self) -> Worker:
        """A new worker, which may not run yet. Raises OSError, and StarterGone."""
        process, ours = self._started(RUN)
        ours.sendall(json.dumps(self._asked | {"module": tracing.__name__}).encode() + b"\n")
        return Worker(process, TracesEnd(ours, self._params, self._caps))
