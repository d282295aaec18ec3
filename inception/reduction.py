"""Sums over a step's micro-batches, over all ranks, in the order of a TreeSum.

Each rank joins its own micro-batches; then each gets its share of every partial sum, joins it and
gives it to all. The sum has the same bits on every rank, and on any number of ranks. With one
partial sum per rank, that moves as many bytes as a ring all-reduce does. Without the order, the
backend's all-reduce adds them up as it likes.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from inception.network import InceptionNet
from inception.statistics import StepStatistics
from inception.tree_sum import Node, TreeSum

# torch 2.13 renames it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
LOCAL: Node = (-1, 0)  # without an order: all micro-batches of a rank
SMALL = 1 << 14  # values, 64 KiB: up to here a second message takes longer than twice the bytes


class StepReduction:
    """One rank's part in the sums of each step: of gradients, loss and batch-norm statistics.

    Where a micro-batch is joined with the one before it, autograd does so, in the parameters'
    gradients. Other sums are taken from there and joined here; DDP hands over what the last
    backward pass completes, bucket by bucket while it goes on, and gets the sums of all ranks back.
    Loss and statistics, the small values, go before them on all ranks.
    """

    def __init__(
        self, model: nn.Module, tree: TreeSum, rank: int, *, is_exact: bool = True
    ) -> None:
        """model: an InceptionNet, with its frozen stages, or DDP's wrapper of one, whose gradients
        this sums from now on. is_exact: the same on all ranks; otherwise sums are equal up to
        rounding only."""
        self.tree, self.rank, self.is_exact = tree, rank, is_exact
        self.num_micro_batches = len(tree.owners)
        self.order = tree.order(rank)
        self.is_ddp = isinstance(model, DistributedDataParallel)
        self.network = next(m for m in model.modules() if isinstance(m, InceptionNet))
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.statistics = StepStatistics(self.network)
        self._has_one_part_each = tree.parts == tuple(
            ((tree.world_size.bit_length() - 1, r),) for r in range(tree.world_size)
        )
        self._nodes = tree.parts[rank] if is_exact else (LOCAL,) * bool(self.order)
        self._gradient_joins = self._plan_gradients()
        self._gradients: dict[Node, dict[Tensor, Tensor]] = {}  # by parameter
        self._small: dict[Node, Tensor] = {}
        self._small_sum: Future[Tensor] | None = None
        self._error: Exception | None = None
        # One thread, or stream, so that all ranks make their exchanges in the same order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gradient exchange")
        self._stream: torch.cuda.Stream | None = None
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self._sum_bucket)

    def add_gradients(self, index: int) -> None:
        """Takes the gradients after micro-batch `index`, one in `order` but the last under DDP, if
        they do not stay where they are."""
        left_halves, node = self._gradient_joins[index]
        if node is None:
            return
        gradients: dict[Tensor, Tensor] = {}
        for parameter in self.parameters:
            if parameter.grad is not None:
                gradients[parameter], parameter.grad = parameter.grad, None
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
        left_halves, node = self._joins(index)
        for left in left_halves:
            values = self._small.pop(left) + values
        self._small[node] = values

    def exchange_small(self, out: Tensor) -> None:
        """Starts the sum of all micro-batches' values in `out` (n,). All ranks take part: after
        their last forward pass, in which DDP may communicate, and before its backward pass."""
        parts = [self._small[node] for node in self._nodes]
        self._small_sum = self._start(lambda: self._exchange(parts, out), out)

    def backward(self, loss: Tensor) -> None:
        """The backward pass. Raises the error of an exchange that fails in it, which DDP hides."""
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise

    def finish(self) -> Tensor:
        """Waits for the sum of the small values and forgets the step."""
        assert self._small_sum is not None
        total: Tensor = self._small_sum.wait()
        self._gradients, self._small, self._small_sum = {}, {}, None
        return total

    def _joins(self, index: int) -> tuple[list[Node], Node]:
        """As TreeSum.joins."""
        if self.is_exact:
            return self.tree.joins(index, self.rank)
        return [LOCAL] if index != self.order[0] else [], LOCAL

    def _plan_gradients(self) -> dict[int, tuple[list[Node], Node | None]]:
        """For each micro-batch: the sums to add to the gradients in the parameters, and the node
        that they then are; None: the next micro-batch's are added to them, so they stay."""
        plan: dict[int, tuple[list[Node], Node | None]] = {}
        is_joined = False  # with the gradients of the micro-batch before
        for index, following in itertools.zip_longest(self.order, self.order[1:]):
            left_halves, node = self._joins(index)
            left_halves = left_halves[is_joined:]
            is_joined = (
                following is not None
                and not left_halves
                and self._joins(following)[0][:1] == [node]
            )
            plan[index] = (left_halves, None if is_joined else node)
        return plan

    def _sum_bucket(self, _: object, bucket: GradBucket) -> Future[Tensor]:
        """DDP's hook: called in the order of the buckets, during the last backward pass."""
        buffer, parameters = bucket.buffer(), bucket.parameters()
        return self._start(
            lambda: self._exchange(self._partial_sums(buffer, parameters), buffer), buffer
        )

    def _start(self, exchange: Callable[[], Tensor], out: Tensor) -> Future[Tensor]:
        """Makes an exchange into `out` while the backward pass goes on."""
        done: Future[Tensor] = Future(devices=[out.device] if out.is_cuda else None)

        def work() -> None:
            try:
                if self._error is not None:  # peers may be out of step
                    raise self._error
                done.set_result(exchange())
            except Exception as error:
                self._error = error
                done.set_exception(error)  # type: ignore[arg-type]

        if out.is_cuda:  # enqueued, not waited for
            if self._stream is None:
                self._stream = torch.cuda.Stream(out.device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()
        else:
            self._thread.submit(work)
        return done

    def _partial_sums(self, buffer: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        """This rank's partial sums of a bucket, as `buffer`, which holds the gradients after the
        last micro-batch and becomes the sum that has it."""
        if not self.order:
            return []
        left_halves, last = self._gradient_joins[self.order[-1]]
        for left in left_halves:
            others = [self._gradients[left][parameter] for parameter in parameters]
            torch._foreach_add_(_views(buffer, parameters), others)
        sums = []
        for node in self._nodes:
            flat = buffer
            if node != last:
                flat = torch.empty_like(buffer)
                gradients = [self._gradients[node][parameter] for parameter in parameters]
                torch._foreach_copy_(_views(flat, parameters), gradients)
            sums.append(flat)
        return sums

    def _exchange(self, parts: list[Tensor], out: Tensor) -> Tensor:
        """parts: this rank's partial sums, (n,) each, one of which may be `out`. -> `out`, which
        becomes the sum of those of all ranks."""
        world_size = self.tree.world_size
        if world_size == 1 or not self.is_exact:
            if not parts:
                out.zero_()
            elif parts[0] is not out:
                out.copy_(parts[0])
            if world_size > 1:
                dist.all_reduce(out)
            return out
        if not out.is_cuda and self._has_one_part_each:
            if parts[0] is not out:
                out.copy_(parts[0])
            self._halve_and_double(out, world_size // 2)
            return out
        shares = [share.numel() for share in out.tensor_split(world_size)]  # by rank
        send = parts[0] if len(parts) == 1 else out.new_empty(len(parts) * len(out))
        if len(parts) > 1:  # sorted by the rank that they are for
            split = (part.tensor_split(world_size) for part in parts)
            torch.cat(
                [share for of_rank in zip(*split, strict=True) for share in of_rank], out=send
            )
        counts = [len(nodes) for nodes in self.tree.parts]
        received = out.new_empty(sum(counts), shares[self.rank])
        dist.all_to_all_single(
            received.view(-1), send,
            output_split_sizes=[count * shares[self.rank] for count in counts],
            input_split_sizes=[len(parts) * share for share in shares],
        )  # fmt: skip
        nodes = [node for of_rank in self.tree.parts for node in of_rank]
        share = self.tree.join(dict(zip(nodes, received, strict=True)), torch.add)
        if len(out) % world_size == 0:
            _all_gather(out, share)
            return out
        # Equal shares are all that a gather takes: those that are shorter by one are padded.
        gathered = out.new_empty(world_size, max(shares))
        _all_gather(gathered.view(-1), F.pad(share, (0, max(shares) - len(share))))
        return torch.cat([row[:n] for row, n in zip(gathered, shares, strict=True)], out=out)

    def _halve_and_double(self, values: Tensor, distance: int) -> None:
        """The tree's sum in place, where 2**k ranks have one partial sum each: a rank and the one
        at `distance` sum one half of `values` each, go on with theirs, and swap the sums. Over gloo
        faster than collectives, on 2 and 4 ranks as fast as its all-reduce."""
        if not distance:
            return
        peer = self.rank ^ distance
        mine = other = values
        if len(values) > SMALL:
            halves = values.tensor_split(2)
            mine, other = halves if self.rank < peer else halves[::-1]
        received = torch.empty_like(mine)
        _swap(peer, other, received)
        mine += received
        self._halve_and_double(mine, distance // 2)
        if other is not mine:
            _swap(peer, mine, other)


def _swap(peer: int, send: Tensor, out: Tensor) -> None:
    """Both ranks take part."""
    for work in dist.isend(send, peer), dist.irecv(out, peer):
        assert work is not None  # None to ranks outside the group
        work.wait()


def _views(buffer: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The parts of a bucket as DDP lays them out, in their parameters' strides. (The bucket's own
    `gradients` are contiguous, whatever the parameters' layout.)"""
    offsets = itertools.accumulate((p.numel() for p in parameters), initial=0)
    return [
        buffer.as_strided(p.size(), p.stride(), buffer.storage_offset() + offset)
        for p, offset in zip(parameters, offsets, strict=False)
    ]
