"""Basic blocks and the text of instructions: the bottom of the kernel language.

Instructions are written as text at once, in final form. Building the same functions as llvmlite.ir objects takes as
long as LLVM's own work on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from whet.codegen.irtypes import LanguageError
from whet.codegen.target import Target


class Phi:
    """A value that depends on the edge by which its block is entered; edges are added as they become known."""

    __slots__ = ("edges", "name", "type_text")

    def __init__(self, name: str, type_text: str) -> None:
        self.name = name
        self.type_text = type_text
        self.edges: list[tuple[str, str]] = []

    def text(self) -> str:
        return f"{self.name} = phi {self.type_text} " + ", ".join(f"[ {v}, %{label} ]" for v, label in self.edges)


class Block:
    """A label, its phis, and instructions of which the last ends it."""

    __slots__ = ("label", "lines", "phis")

    def __init__(self, label: str) -> None:
        self.label = label
        self.phis: list[Phi] = []
        self.lines: list[str] = []


class Emitter:
    """Appends instructions to the current block. `declarations` (name → text) is shared by a module's functions."""

    def __init__(self, target: Target, declarations: dict[str, str]) -> None:
        self.target = target
        self.declarations = declarations
        self.blocks: list[Block] = []
        self.entry_lines: list[str] = []
        self._aliases: dict[str, str] = {}
        self._count = 0
        self._block: Block | None = None

    @property
    def block(self) -> Block:
        """Where the next instruction goes. Raises LanguageError behind a `leave` or `return_`."""
        if self._block is None:
            raise LanguageError("this code cannot be reached", hint="It follows leave() or return_() in its block.")
        return self._block

    @property
    def reachable(self) -> bool:
        """Whether the current place can be reached."""
        return self._block is not None

    def fresh(self) -> str:
        """A new name for a result."""
        self._count += 1
        return f"%v{self._count}"

    def new_block(self, what: str) -> Block:
        """A block that is not yet placed."""
        self._count += 1
        return Block(f"{what}{self._count}")

    def place(self, block: Block) -> None:
        """Put `block` behind the others and go on there."""
        self.blocks.append(block)
        self._block = block

    def resume(self, block: Block) -> None:
        """Go on at the end of a block that is already placed."""
        self._block = block

    def end(self, text: str) -> None:
        """End the current block with a jump or return; nothing follows until the next `place`."""
        self.block.lines.append(text)
        self._block = None

    def line(self, text: str) -> None:
        """Emit an instruction without a result."""
        self.block.lines.append(text)

    def assign(self, text: str) -> str:
        """Emit an instruction and return its result's name."""
        self._count += 1
        name = f"%v{self._count}"
        self.block.lines.append(f"{name} = {text}")
        return name

    def intrinsic(self, name: str, returns: str, operands: Iterable[tuple[str, str]]) -> str:
        """Call an intrinsic of LLVM with (type, operand) pairs; "" as result where it returns nothing.

        An immediate that an instruction cannot encode aborts the process inside LLVM: callers check theirs.
        """
        pairs = list(operands)
        # Attributes such as `align 4` belong to the call and not to the declaration.
        types = ", ".join(t.split(" align ")[0] for t, _ in pairs)
        self.declarations[name] = f"declare {returns} @{name}({types})"
        call = f"call {returns} @{name}({', '.join(f'{t} {o}' for t, o in pairs)})"
        if returns == "void":
            self.line(call)
            return ""
        return self.assign(call)

    def alias(self, name: str, target: str) -> None:
        """Let `name` mean `target` everywhere: a phi that turned out to have one value only."""
        self._aliases[name] = target

    def resolve(self, name: str) -> str:
        """What `name` means after all aliases."""
        while name in self._aliases:
            name = self._aliases[name]
        return name

    def body_text(self) -> str:
        """All blocks as text."""
        parts = []
        for index, block in enumerate(self.blocks):
            parts.append(f"{block.label}:")
            if index == 0:
                parts.extend(f"  {line}" for line in self.entry_lines)
            parts.extend(f"  {phi.text()}" for phi in block.phis)
            parts.extend(f"  {line}" for line in block.lines)
        text = "\n".join(parts)
        if self._aliases:
            text = re.sub(r"%v\d+", lambda match: self.resolve(match.group()), text)
        return text
