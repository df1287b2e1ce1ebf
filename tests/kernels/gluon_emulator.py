"""Runs a warp-specialised Gluon kernel on the CPU: its parts in turns, barriers, and copies that take time.

Triton interprets no Gluon. What is emulated is what such a kernel gets wrong: who waits for whom, and which bytes
are there when. It is seen in three ways:

- A missing arrival is a deadlock.
- A copy makes its destination NaN at once and delivers when the schedule says so. A product reads when it is waited
  for. So what is read too early is NaN.
- Each part carries what it knows to be over, and hands it on through barriers alone. Who reads must know that the copy
  has arrived, who copies that all readers are done, and who arrives that the phase before is over. So a race is
  seen also where the order happens to be harmless.

Layouts and registers mean nothing here.
"""

import builtins
import math
import types
from collections import defaultdict
from pathlib import Path

import torch

from .interleaving import Interleaving


class Barrier:
    """An mbarrier: a phase ends when all arrivals and all announced bytes have come.

    It gathers what those that come know. Who waits for the phase learns that.
    """

    def __init__(self):
        self.phase = self.count = self.missing = self.bytes = 0
        self.knowledge, self._gathered = {}, {}

    def start(self, count):
        self.count = self.missing = count

    def arrive(self, part, arrivals, announced=0):
        assert includes(part.knowledge, self.knowledge), "an arrival comes before the phase is surely over"
        assert arrivals <= self.missing, "more arrivals than the barrier counts"
        self.come(part.knowledge, arrivals, announced)

    def come(self, knowledge, arrivals=0, announced=0, delivered=0):
        learn(self._gathered, knowledge)
        self.missing -= arrivals
        self.bytes += announced - delivered
        if self.missing == 0 and self.bytes == 0:
            self.phase += 1
            self.missing = self.count
            self.knowledge, self._gathered = self._gathered, {}

    def has_passed(self, parity):
        return self.phase & 1 != parity


def learn(knowledge, more):
    """Add what is over by `more`: for each part and copy, how many of its steps."""
    for actor, steps in more.items():
        knowledge[actor] = max(knowledge.get(actor, 0), steps)


def includes(knowledge, part_of_it):
    """Whether all of `part_of_it` is known."""
    return all(knowledge.get(actor, 0) >= steps for actor, steps in part_of_it.items())


class Uses:
    """Who copied into a piece of shared memory last, who read it since, and who stored to it without a fence."""

    def __init__(self):
        self.copy, self.readers, self.unfenced = {}, {}, set()

    def read(self, part):
        """Who stores counts as a reader: groups store the same values, so their order does not matter."""
        assert includes(part.knowledge, self.copy), "a copy is read that was not waited for"
        self.readers[part.index] = part.knowledge[part.index]

    def replace(self, part, copy):
        assert includes(part.knowledge, self.copy), "a copy starts over one that was not waited for"
        assert includes(part.knowledge, self.readers), "a copy starts over what may still be read"
        self.copy, self.readers = {copy: 1}, {}


class Shared:
    """Shared memory: a tensor and views of it."""

    layout = None

    def __init__(self, data, emulator):
        self.data, self.dtype, self._emulator = data, data.dtype, emulator

    def index(self, index):
        return Shared(self.data[int(index)], self._emulator)

    def permute(self, order):
        return Shared(self.data.permute(order), self._emulator)

    @property
    def uses(self):
        return self._emulator.uses[self.data.data_ptr()]

    def load(self, _layout):
        self.uses.read(self._emulator.pause())
        return self.data.clone()

    def store(self, value):
        part = self._emulator.pause()
        self.uses.read(part)
        self.uses.unfenced.add(part.index)
        self.data.copy_(value)


class Barriers(list):
    """An allocation of barriers."""

    def index(self, index):
        return self[int(index)]


class Descriptor:
    """A tensor descriptor of a matrix, whose blocks are zero outside it."""

    layout = None

    def __init__(self, base, shape, strides, block_shape):
        self.matrix, self.dtype = base.as_strided(shape, strides), base.dtype
        self.block_shape = block_shape
        nbytes = block_shape[0] * block_shape[1] * base.element_size()
        self.block_type = types.SimpleNamespace(nbytes=nbytes)


class Pointer:
    """A tensor's memory, and offsets into it in elements."""

    def __init__(self, memory, offset=0):
        self.memory, self.offset = memory, offset

    def __add__(self, offset):
        return Pointer(self.memory, self.offset + offset)


class Product:
    """A matrix product in flight; may not be used before it is waited for, and reads at any time until then."""

    def __init__(self, part, operands, acc):
        self.part, self.value = part, None
        self._operands, self._acc = operands, acc
        for uses in self._read():
            assert part.index not in uses.unfenced, "a product reads what was stored without a fence"

    def _read(self):
        shared = [operand.uses for operand in self._operands if isinstance(operand, Shared)]
        for uses in shared:
            uses.read(self.part)
        return shared

    def finish(self):
        self._read()
        a, b = (x.data if isinstance(x, Shared) else x for x in self._operands)
        self.value = a.float() @ b.float() + self._acc


class Emulator:
    """The names that a kernel's module uses, for one program after another."""

    def __init__(self, schedule):
        self._turns = Interleaving(schedule)
        self._products = []  # in flight, of all parts
        self.uses = defaultdict(Uses)  # by address
        self.program = self.programs = 0

    @property
    def trace(self):
        """Who went on and which copies arrived, in their order."""
        return self._turns.trace

    def launch(self, module, kernel, programs, *arguments, **constants):
        """Run `kernel` of the module's source text as `programs` programs."""
        namespace = {name: getattr(self, name) for name in ("warpgroup_mma", "warpgroup_mma_wait")}
        namespace |= {
            "gluon": types.SimpleNamespace(jit=lambda fn=None, **_: fn or (lambda real: real)),
            "gl": self._language(),
            "mbarrier": types.SimpleNamespace(
                MBarrierLayout=lambda: "barriers",
                init=lambda barrier, count: barrier.start(count),
                expect=lambda barrier, nbytes: self._arrive(barrier, 1, nbytes),
                arrive=self._arrive,
                wait=lambda barrier, phase, pred=True: self._wait(barrier, int(phase)) if pred else None,
            ),
            "tma": types.SimpleNamespace(async_load=self._copy),
            "fence_async_shared": self._fence,
            "range": lambda *ends: map(torch.tensor, builtins.range(*map(int, ends))),
        }
        source = Path(module).read_text()
        head, body = source.split("\nGROUP = ")
        assert "import" in head
        exec(compile("GROUP = " + body, str(module), "exec"), namespace)
        self.programs = programs
        for self.program in builtins.range(programs):
            self.uses.clear()
            namespace[kernel](*arguments, **constants)
            assert not self._products, "a product is in flight when its program ends"

    def _language(self):
        def where(condition, yes, no):
            yes = torch.as_tensor(yes)
            return torch.where(condition, yes, torch.as_tensor(no, dtype=yes.dtype))

        def load(pointer):
            return pointer.memory.flatten()[int(pointer.offset)].long()

        def store(pointer, value, mask):
            offset, mask = torch.broadcast_tensors(pointer.offset, mask)
            pointer.memory.view(-1)[offset[mask]] = value[mask]

        def allocate(dtype, shape, _layout):
            if _layout == "barriers":
                return Barriers(Barrier() for _ in builtins.range(shape[0]))
            return Shared(torch.full(shape, math.nan, dtype=dtype), self)

        return types.SimpleNamespace(
            constexpr=lambda value: value,
            int64=torch.int64,
            float32=torch.float32,
            program_id=lambda _axis: torch.tensor(self.program),
            num_programs=lambda _axis: torch.tensor(self.programs),
            static_range=builtins.range,
            cdiv=lambda a, b: (a + b - 1) // b,
            arange=lambda first, last, _layout: torch.arange(first, last),
            zeros=lambda shape, dtype, _layout: torch.zeros(shape, dtype=dtype),
            zeros_like=torch.zeros_like,
            full=lambda shape, value, dtype, _layout: torch.full(shape, value, dtype=dtype),
            max=lambda x, axis: x.amax(axis),
            sum=lambda x, axis: x.sum(axis),
            split=lambda x: x.unbind(-1),
            fma=lambda a, b, c: a * b + c,
            maximum=lambda a, b: torch.maximum(a, torch.as_tensor(b, dtype=a.dtype)),
            exp2=torch.exp2,
            log2=torch.log2,
            convert_layout=lambda x, _layout: x,
            where=where,
            load=load,
            store=store,
            allocate_shared_memory=allocate,
            warp_specialize=lambda parts, _warps, _registers: self._turns.run(parts),
            **dict.fromkeys(
                ("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout"),
                lambda *_: None,
            ),
        )

    def pause(self, can_go_on=lambda: True, awaited=None):
        """Let others go first. Returns the part that calls."""
        return self._turns.pause(can_go_on, awaited)

    def _arrive(self, barrier, count, announced=0):
        part = self.pause()
        barrier.arrive(part, count, announced)
        part.knowledge[part.index] += 1

    def _wait(self, barrier, parity):
        part = self.pause(lambda: barrier.has_passed(parity), barrier)
        learn(part.knowledge, barrier.knowledge)

    def _fence(self):
        if part := self._turns.current:  # before the parts begin nothing is stored
            for uses in self.uses.values():
                uses.unfenced.discard(part.index)

    def _copy(self, descriptor, corner, barrier, destination):
        part = self.pause()
        rows, columns = (int(x) for x in corner)
        height, width = descriptor.block_shape
        block = torch.zeros(height, width, dtype=descriptor.dtype)
        matrix = descriptor.matrix[rows : rows + height, columns : columns + width]
        block[: matrix.shape[0], : matrix.shape[1]] = matrix

        def deliver():
            destination.data.copy_(block)
            barrier.come(knowledge, delivered=descriptor.block_type.nbytes)

        name = self._turns.start_copy(barrier, deliver)
        knowledge = part.knowledge | {name: 1}
        destination.uses.replace(part, name)
        destination.data.fill_(math.nan)

    def warpgroup_mma(self, a, b, acc, *, use_acc=True, is_async=False):
        assert is_async
        product = Product(self.pause(), (a, b), acc if use_acc else 0)
        self._products.append(product)
        return product

    def warpgroup_mma_wait(self, num_outstanding, deps):
        part = self.pause()
        flying = [product for product in self._products if product.part is part]
        for product in flying[: len(flying) - num_outstanding]:
            product.finish()
            self._products.remove(product)
        values = tuple(x.value if isinstance(x, Product) else x for x in deps)
        assert all(value is not None for value in values), "a product is used before it is done"
        return values[0] if len(values) == 1 else values
