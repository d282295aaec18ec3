"""Sums over a step's micro-batches, over all ranks, in the order of a TreeSum.

Each rank joins its own micro-batches; then each gets its share of every partial sum, joins it and
gives it to all. The sum has the same bits on every rank, and on any number of ranks. With one
partial sum per rank, that moves as many bytes as a ring all-reduce does.
"""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from inception.tree_sum import Node, TreeSum


class StepReduction:
    """One rank's part in the sums of each step: of gradients, and of a few small tensors.

    The gradients of all but the last micro-batch are taken from the parameters and joined here; DDP
    hands over those of the last one bucket by bucket while the backward pass goes on, and gets the
    sums back.
    """

    def __init__(self, tree: TreeSum, rank: int) -> None:
        self.tree, self.rank = tree, rank
        self.num_micro_batches = len(tree.owners)
        self.order = tree.order(rank)
        self._gradients: dict[Node, dict[Tensor, Tensor]] = {}  # by parameter
        self._small: dict[Node, Tensor] = {}
        # One thread, so that buckets are exchanged in the same order on all ranks.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gradient exchange")

    def attach(self, model: DistributedDataParallel) -> None:
        """Lets this sum the model's gradients."""
        model.register_comm_hook(None, self._sum_bucket)

    def add_gradients(self, index: int, parameters: Iterable[nn.Parameter]) -> None:
        """Takes the gradients of micro-batch `index`, one in `order` but the last under DDP."""
        gradients: dict[Tensor, Tensor] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                gradients[parameter], parameter.grad = parameter.grad, None
        left_halves, node = self.tree.joins(index, self.rank)
        for left in left_halves:
            other = self._gradients.pop(left)
            torch._foreach_add_(list(gradients.values()), list(other.values()))
        self._gradients[node] = gradients

    def set_gradients(self) -> None:
        """Without DDP, on one rank: gives the parameters their sums."""
        ((_, gradients),) = self._gradients.items()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    def add_small(self, index: int, values: Tensor) -> None:
        """values: (n,), of micro-batch `index`, the next in `order`."""
        left_halves, node = self.tree.joins(index, self.rank)
        for left in left_halves:
            values = self._small.pop(left) + values
        self._small[node] = values

    def sum_small(self, like: Tensor) -> Tensor:
        """The sum of all micro-batches' values, as `like`. All ranks take part."""
        parts = [self._small[node] for node in self.tree.parts[self.rank]]
        return self._exchange(parts, like)

    def finish(self) -> None:
        """Forgets the step."""
        self._gradients, self._small = {}, {}

    def _sum_bucket(self, _: object, bucket: GradBucket) -> Future[Tensor]:
        """DDP's hook: called in the order of the buckets, during the last backward pass."""
        buffer, parameters = bucket.buffer(), bucket.parameters()
        done: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)

        def work() -> None:
            try:
                done.set_result(self._exchange(self._partial_sums(buffer, parameters), buffer))
            except BaseException as error:  # DDP raises it where it waits
                done.set_exception(error)  # type: ignore[arg-type]

        if buffer.is_cuda:  # enqueued, not waited for
            stream = torch.cuda.Stream(buffer.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()
        else:
            self._thread.submit(work)
        return done

    def _partial_sums(self, buffer: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        """This rank's partial sums of a bucket, as `buffer`, which holds the gradients of the last
        micro-batch and becomes the sum that has it."""
        if not self.order:
            return []
        left_halves, last = self.tree.joins(self.order[-1], self.rank)
        for left in left_halves:
            others = [self._gradients[left][parameter] for parameter in parameters]
            torch._foreach_add_(_views(buffer, parameters), others)
        sums = []
        for node in self.tree.parts[self.rank]:
            flat = buffer
            if node != last:
                flat = torch.empty_like(buffer)
                gradients = [self._gradients[node][parameter] for parameter in parameters]
                torch._foreach_copy_(_views(flat, parameters), gradients)
            sums.append(flat)
        return sums

    def _exchange(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """parts: this rank's partial sums, (n,). -> (n,), their sum with those of all ranks."""
        world_size, mine = self.tree.world_size, self.tree.parts[self.rank]
        add: Callable[[Tensor, Tensor], Tensor] = torch.add
        if world_size == 1:
            return self.tree.join(dict(zip(mine, parts, strict=True)), add)
        chunk = -(-len(like) // world_size)
        padding = (0, world_size * chunk - len(like))
        rows = [F.pad(part, padding).view(world_size, 1, chunk) for part in parts]
        send = torch.cat(rows, 1).flatten() if rows else like.new_empty(0)
        counts = [len(nodes) for nodes in self.tree.parts]
        received = like.new_empty(sum(counts), chunk)
        dist.all_to_all_single(
            received.view(-1), send,
            output_split_sizes=[count * chunk for count in counts],
            input_split_sizes=[len(parts) * chunk] * world_size,
        )  # fmt: skip
        nodes = [node for of_rank in self.tree.parts for node in of_rank]
        share = self.tree.join(dict(zip(nodes, received, strict=True)), add)
        result = like.new_empty(world_size * chunk)
        dist.all_gather(list(result.view(world_size, chunk)), share.contiguous())
        return result[: len(like)]


def _views(buffer: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The parts of a bucket as DDP lays them out, in their parameters' strides. (The bucket's own
    `gradients` are contiguous, whatever the parameters' layout.)"""
    offsets = itertools.accumulate((p.numel() for p in parameters), initial=0)
    return [
        buffer.as_strided(p.size(), p.stride(), buffer.storage_offset() + offset)
        for p, offset in zip(parameters, offsets, strict=False)
    ]
