"""The times of a runtime's nodes; segdeploy.timing.layers finds the layers of our network that they belong to."""

import dataclasses

WARMUP = 3


@dataclasses.dataclass(frozen=True, slots=True)
class NodeTime:
    """One node of a network as a runtime runs it: `ms` is the mean of a call, 0 where the runtime skips it.

    `names`: the nodes or tensors of the file that it stands for, as far as the runtime says; `reads`: the nodes, by
    their `name`, whose outputs it reads. A list of these is in the order of the data.
    """

    name: str
    kind: str
    ms: float
    names: tuple[str, ...]
    reads: tuple[str, ...] = ()
