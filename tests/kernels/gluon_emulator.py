"""Runs a warp-specialised Gluon kernel on the CPU: a thread for each partition, barriers, and copies that take time.

Triton interprets no Gluon. What is emulated is what such a kernel gets wrong: who waits for whom, and which bytes
are there when. A copy makes its destination NaN at once and delivers later; a matrix product reads its operands only
when it is waited for. So reading too early, or freeing a buffer too early, gives NaN, and a missing arrival times out.
Layouts and registers mean nothing here.
"""

import builtins
import random
import threading
import types
from pathlib import Path

import torch

_PATIENCE = 20.0  # seconds that a barrier is waited for before the kernel counts as stuck


class Barrier:
    """An mbarrier: a phase ends when all arrivals and all announced bytes have come."""

    def __init__(self):
        self.changed = threading.Condition()
        self.phase = self.count = self.missing = self.bytes = 0

    def start(self, count):
        self.count = self.missing = count

    def come(self, arrivals=0, announced=0, delivered=0):
        with self.changed:
            assert arrivals <= self.missing, "more arrivals than the barrier counts"
            self.missing -= arrivals
            self.bytes += announced - delivered
            if self.missing == 0 and self.bytes == 0:
                self.phase += 1
                self.missing = self.count
                self.changed.notify_all()

    def wait(self, parity):
        with self.changed:
            done = self.changed.wait_for(lambda: self.phase & 1 != parity, _PATIENCE)
            assert done, "a barrier was never passed"


class Shared:
    """Shared memory: a tensor and views of it."""

    layout = None

    def __init__(self, data):
        self.data, self.dtype = data, data.dtype

    def index(self, index):
        return Shared(self.data[int(index)])

    def permute(self, order):
        return Shared(self.data.permute(order))

    def load(self, _layout):
        return self.data.clone()

    def store(self, value):
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
    """A matrix product in flight; may not be used before it is waited for."""

    def __init__(self, a, b, acc, use_acc):
        self.operands, self.value = (a, b, acc, use_acc), None

    def finish(self):
        if self.value is None:
            a, b, acc, use_acc = self.operands
            a, b = (x.data if isinstance(x, Shared) else x for x in (a, b))
            self.value = a.float() @ b.float() + (acc if use_acc else 0)
            self.operands = None


class Emulator:
    """The names that a kernel's module uses, for one program after another."""

    def __init__(self, seed=0):
        self._random = random.Random(seed)
        self._local = threading.local()
        self._failures, self._copies = [], []
        self.program = self.programs = 0

    def launch(self, module, kernel, programs, *arguments, **constants):
        """Run `kernel` of the module's source text as `programs` programs."""
        namespace = {name: getattr(self, name) for name in ("warpgroup_mma", "warpgroup_mma_wait")}
        namespace |= {
            "gluon": types.SimpleNamespace(jit=lambda fn=None, **_: fn or (lambda real: real)),
            "gl": self._language(),
            "mbarrier": types.SimpleNamespace(
                MBarrierLayout=lambda: "barriers",
                init=lambda barrier, count: barrier.start(count),
                expect=lambda barrier, nbytes: barrier.come(arrivals=1, announced=nbytes),
                arrive=lambda barrier, count: barrier.come(arrivals=count),
                wait=lambda barrier, phase, pred=True: barrier.wait(int(phase)) if pred else None,
            ),
            "tma": types.SimpleNamespace(async_load=self._copy),
            "fence_async_shared": lambda: None,
            "range": lambda *ends: map(torch.tensor, builtins.range(*map(int, ends))),
        }
        source = Path(module).read_text()
        head, body = source.split("\nGROUP = ")
        assert "import" in head
        exec(compile("GROUP = " + body, str(module), "exec"), namespace)
        self.programs = programs
        for self.program in builtins.range(programs):
            namespace[kernel](*arguments, **constants)
            for copy in self._copies:
                copy.join()
            if self._failures:
                raise self._failures[0]

    def _language(self):
        def where(condition, yes, no):
            return torch.where(condition, yes, torch.as_tensor(no, dtype=yes.dtype))

        def load(pointer):
            return pointer.memory.flatten()[int(pointer.offset)].long()

        def store(pointer, value, mask):
            offset, mask = torch.broadcast_tensors(pointer.offset, mask)
            pointer.memory.view(-1)[offset[mask]] = value[mask]

        def allocate(dtype, shape, _layout):
            if _layout == "barriers":
                return Barriers(Barrier() for _ in builtins.range(shape[0]))
            return Shared(torch.full(shape, float("nan"), dtype=dtype))

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
            warp_specialize=self._specialize,
            **dict.fromkeys(
                ("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout"),
                lambda *_: None,
            ),
        )

    def _specialize(self, partitions, _warps, _registers):
        def run(function, arguments):
            try:
                function(*arguments)
            except BaseException as failure:  # noqa: BLE001 - handed to the thread that launched
                self._failures.append(failure)

        threads = [threading.Thread(target=run, args=partition, daemon=True) for partition in partitions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _copy(self, descriptor, corner, barrier, destination):
        rows, columns = (int(x) for x in corner)
        height, width = descriptor.block_shape
        block = torch.zeros(height, width, dtype=descriptor.dtype)
        part = descriptor.matrix[rows : rows + height, columns : columns + width]
        block[: part.shape[0], : part.shape[1]] = part
        destination.data.fill_(float("nan"))

        def deliver():
            destination.store(block)
            barrier.come(delivered=descriptor.block_type.nbytes)

        timer = threading.Timer(self._random.uniform(0, 0.003), deliver)
        timer.start()
        self._copies.append(timer)

    def warpgroup_mma(self, a, b, acc, *, use_acc=True, is_async=False):
        assert is_async
        product = Product(a, b, acc, use_acc)
        self._local.flying = [*getattr(self._local, "flying", []), product]
        return product

    def warpgroup_mma_wait(self, num_outstanding, deps):
        flying = self._local.flying
        for product in flying[: len(flying) - num_outstanding]:
            product.finish()
        self._local.flying = flying[len(flying) - num_outstanding :]
        values = tuple(x.value if isinstance(x, Product) else x for x in deps)
        assert all(value is not None for value in values), "a product is used before it is done"
        return values[0] if len(values) == 1 else values
