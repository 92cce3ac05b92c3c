"""What reading one file may cost: steps, bytes and objects, in whatever format it is.

A reader spends from the budget before it allocates memory or begins work. All members, levels and
copies of a file share one budget, so their sum is bounded and not only each of them.
"""

MAX_STEPS = 250_000  # opcodes of a pickle; released networks have up to 20 000
MIN_BYTES = 1 << 26  # that any file may take
MAX_RATIO = 100  # bytes for each byte of the file: arrays may be all zeros
MAX_MODULES = 20_000  # of a network; released ones have a few hundred
MIN_OBJECTS = 1 << 20  # values of JSON that any file may have


class BudgetError(ValueError):
    """A file that costs more than a file of its size may."""


class Budget:
    """The steps, bytes and objects that are left for one file.

    Parameters
    ----------
    size
        Size of the file in bytes.
    ratio
        Bytes that may be allocated for each byte of the file, beyond the first ones.
    min_bytes
        Bytes that a file of any size may take.
    """

    def __init__(self, size: int, ratio: int = MAX_RATIO, min_bytes: int = MIN_BYTES) -> None:
        self.steps = MAX_STEPS
        self.bytes = min_bytes + ratio * size
        self.objects = MIN_OBJECTS + size // 8
        self.modules = MAX_MODULES

    def step(self) -> None:
        """Spend one step. Raises BudgetError."""
        self.steps -= 1
        if self.steps < 0:
            raise BudgetError(f"it has more than {MAX_STEPS} opcodes")

    def allocate(self, count: int) -> None:
        """Spend bytes. Raises BudgetError."""
        self.bytes -= count
        if self.bytes < 0:
            raise BudgetError("it copies the same bytes too often, or unpacks to too many")

    def create(self, count: int = 1) -> None:
        """Spend objects. Raises BudgetError."""
        self.objects -= count
        if self.objects < 0:
            raise BudgetError("it holds too many values for its size")
