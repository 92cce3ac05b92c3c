"""Python's unpickler without what a malicious stream could exploit, on a budget.

The C implementation cannot restrict BUILD (a stream could set shape and strides of a tensor, or any
attribute of a class), and a four-byte opcode makes it allocate gigabytes for its memo. Large values
are single opcodes, so the Python one is fast enough.
"""

import functools
import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

from erk.io.budget import Budget

MAX_KEY = 1 << 60  # of an integer key: larger ones can have equal hashes


class EndError(Exception): ...  # carries the number of bytes that are missing


class Stream:
    """A file that refuses to read, or allocate memory for, more bytes than it has.

    `digest`, if any, is updated with all bytes that were read.
    """

    def __init__(self, file: BinaryIO | io.IOBase, size: int, digest: Any = None):
        self.file: Any = file
        self.size = self.left = size
        self.digest = digest

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise EndError(size - self.left)
        return self._seen(self.file.read(size))

    def readline(self) -> bytes:
        line = self._seen(self.file.readline())
        if not line.endswith(b"\n"):
            raise EndError(1)
        return line

    def finish(self) -> str:
        """Read the rest of the file; return the sha256 of all its bytes."""
        while self._seen(self.file.read(1 << 20)):
            pass
        return str(self.digest.hexdigest())

    def _seen(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.digest is not None:
            self.digest.update(data)
        return data


def hashed_stream(file: BinaryIO, size: int) -> Stream:
    """Return a stream that computes the sha256 of what is read."""
    return Stream(file, size, hashlib.sha256())


class Unpickler(pickle._Unpickler):
    """Unpickler of a subclass's `allowed` globals; keys are scalars, since tuples hash slowly.

    Functions among `copying` copy their first argument, which is spent from the budget.
    """

    allowed: ClassVar[Mapping[str, Any]] = {}
    copying: ClassVar[tuple[Any, ...]] = ()
    buildable: ClassVar[tuple[type, ...]] = ()
    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    append: Callable[[Any], None]

    def __init__(self, stream: Stream, budget: Budget):
        super().__init__(stream)
        self.budget = budget

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise pickle.UnpicklingError(f"it requests {full!r}, which is not allowed")
        function = self.allowed[full]
        return functools.partial(self.copied, function) if function in self.copying else function

    def copied(self, function: Callable[..., Any], data: Any, *arguments: Any) -> Any:
        """Call a function that copies its data; refuse one buffer copied a million times."""
        self.budget.allocate(len(data))
        return function(data, *arguments)

    def reduce(self) -> None:
        """Call a function; its arguments are a tuple, since a tensor has any number of items."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f"it gives a {type(arguments).__name__} as arguments")
        self.append(function(*arguments))

    def build(self) -> None:
        state = self.stack.pop()
        target: Any = self.stack[-1]
        if not isinstance(target, self.buildable):
            raise pickle.UnpicklingError(f"it tries to change a {type(target).__name__}")
        if isinstance(state, tuple) and state and isinstance(state[-1], bytes):
            self.budget.allocate(len(state[-1]))  # an array copies them
        target.__setstate__(state)  # type: ignore[attr-defined]

    def put(self, items: list[Any], kind: type) -> None:
        """Add alternating keys and values to a dictionary, or members to a set, on the stack."""
        target: Any = self.stack[-1]
        keys = items[::2] if kind is dict else items
        is_valid = isinstance(target, kind) and all(map(_is_key, keys))
        if not is_valid:
            raise pickle.UnpicklingError(f"it adds an item to a {type(target).__name__}")
        target.update(zip(keys, items[1::2], strict=True) if kind is dict else keys)

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value], dict)

    def setitems(self) -> None:
        self.put(self.pop_mark(), dict)

    def additems(self) -> None:
        self.put(self.pop_mark(), set)

    def frozen(self) -> None:
        members = self.pop_mark()
        self.append(set())
        self.put(members, set)

    def build_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.put(items, dict)

    def extend(self, members: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(members)

    def list_append(self) -> None:
        self.extend([self.stack.pop()])

    def appends(self) -> None:
        self.extend(self.pop_mark())

    def bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(size)))

    def extension(self) -> None:
        raise pickle.UnpicklingError("it requests a global by number")

    def newobj(self) -> None:
        """Create an empty object of an allowed class, which later opcodes fill."""
        arguments = self.stack.pop()
        kind: Any = self.stack.pop()
        if not isinstance(kind, type) or not isinstance(arguments, tuple) or arguments:
            raise pickle.UnpicklingError("it constructs an object with arguments")
        self.append(kind.__new__(kind))  # type: ignore[call-overload]

    def unused(self) -> None:
        raise pickle.UnpicklingError("it constructs an object by an opcode that no such file has")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: build,
        pickle.REDUCE[0]: reduce,
        pickle.NEWOBJ[0]: newobj,
        pickle.BYTEARRAY8[0]: bytearray8,
        pickle.SETITEM[0]: setitem,
        pickle.SETITEMS[0]: setitems,
        pickle.ADDITEMS[0]: additems,
        pickle.FROZENSET[0]: frozen,
        pickle.DICT[0]: build_dict,
        pickle.APPEND[0]: list_append,
        pickle.APPENDS[0]: appends,
        pickle.NEWOBJ_EX[0]: unused,
        **dict.fromkeys(pickle.EXT1 + pickle.EXT2 + pickle.EXT4, extension),
    }


def _is_key(key: Any) -> bool:
    if isinstance(key, int):
        return -MAX_KEY < key < MAX_KEY
    return isinstance(key, str | float | bytes | None)


def _counted(step: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    """Count an opcode against the budget: each can allocate an object of 200 bytes."""

    def counted(reader: Unpickler) -> None:
        reader.budget.step()
        step(reader)

    return counted


Unpickler.dispatch = {code: _counted(step) for code, step in Unpickler.dispatch.items()}
