"""Functions of the kernel language: arguments, variables, loops, branches, calls.

Control flow is structured, so static single assignment form is built while the code is written (after Braun et al.,
"Simple and Efficient Construction of Static Single Assignment Form", 2013): a loop's header gets a phi for every
variable that lives around it, and the ones that the body did not assign are taken out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from whet.codegen.emitter import Block, Emitter, Phi
from whet.codegen.irtypes import LanguageError, Number, constant_text, ir_type, pointer_type, storage_type
from whet.codegen.memory import Pointer
from whet.codegen.target import Target
from whet.codegen.values import Operand, Value, constant, constant_vector
from whet.config import KIB
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT32, INT64, UINT8, UINT32, UINT64, DType

V = TypeVar("V", Value, Pointer)
K = TypeVar("K")

STACK_BYTES = 64 * KIB
"""Most stack that one function may take for its arrays: a thread's guard page must not be jumped over unseen."""

_PASSED = (FLOAT32, FLOAT64, INT32, INT64, UINT32, UINT64)
"""Types of arguments and results; smaller ones are passed differently from one calling convention to the next."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a function; `space` is an address space for a pointer, None for a number."""

    name: str
    dtype: DType
    space: int | None
    attributes: str

    @property
    def type_text(self) -> str:
        return ir_type(self.dtype) if self.space is None else pointer_type(self.space)


class Variable(Generic[V]):
    """What a loop or a branch can change: `value` reads it where the code stands, assigning to it changes it."""

    __slots__ = ("_closed", "_current", "_kind")

    def __init__(self, start: V) -> None:
        self._current: V = start
        self._kind = _kind(start)
        self._closed = False

    @property
    def value(self) -> V:
        if self._closed:
            raise LanguageError("a variable is read outside the block that made it", found=self._kind)
        return self._current

    @value.setter
    def value(self, new: V) -> None:
        if self._closed:
            raise LanguageError("a variable is assigned outside the block that made it", found=self._kind)
        if _kind(new) != self._kind:
            raise LanguageError("a variable keeps its type", found=_kind(new), expected=self._kind)
        self._current = new

    def close(self) -> None:
        self._closed = True


class Variables(Generic[K, V]):
    """Variables under keys: a tile of accumulators, for instance. Reads and assigns like a dict of fixed keys."""

    def __init__(self, variables: Mapping[K, Variable[V]]) -> None:
        self._variables: dict[K, Variable[V]] = dict(variables)

    def __getitem__(self, key: K) -> V:
        return self._variables[key].value

    def __setitem__(self, key: K, new: V) -> None:
        self._variables[key].value = new

    def __iter__(self) -> Iterator[K]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def items(self) -> list[tuple[K, V]]:
        """Keys with the values of here and now."""
        return [(key, variable.value) for key, variable in self._variables.items()]


def _kind(value: Value | Pointer) -> tuple[str, str]:
    return value.dtype.name, value.type_text


_State = list[str]
"""The names of the live variables' values at some place."""


@dataclass(slots=True)
class _Loop:
    exit: Block
    live: int
    exits: list[tuple[str, _State]]


@dataclass(slots=True)
class _Branch:
    """A finished `when`, as long as an `otherwise` may still follow."""

    join: Block
    otherwise: Block
    live: int
    before: _State
    then: tuple[str, _State] | None


class Function(Emitter):
    """A function under construction; made by `Module.function`, whose `with` block ends it."""

    def __init__(
        self, name: str, target: Target, declarations: dict[str, str], returns: DType | None, internal: bool
    ) -> None:
        super().__init__(target, declarations)
        if returns is not None and returns not in _PASSED:
            raise LanguageError("a function cannot return this type", found=returns)
        self.name = name
        self.returns = returns
        self.internal = internal
        self.parameters: list[Parameter] = []
        self._live: list[Variable[Any]] = []
        self._loops: list[_Loop] = []
        self._branch: _Branch | None = None
        self._stack_bytes = 0
        self.place(self.new_block("entry"))

    # Arguments and constants

    def argument(self, name: str, dtype: DType = INT64) -> Value:
        """The next argument, a number of 32 or 64 bits."""
        if dtype not in _PASSED:
            raise LanguageError("a function cannot take this type", found=dtype, hint="Pass a pointer to it.")
        self._declare(Parameter(name, dtype, None, ""))
        return Value(self, dtype, 1, f"%arg.{name}")

    def pointer(self, name: str, dtype: DType, *, align: int = 1, alone: bool = False, space: int = 0) -> Pointer:
        """The next argument, an address of elements of `dtype`.

        `alone` promises that this run reaches its memory through no other pointer if it is written; `align` is in
        bytes.
        """
        attributes = (" noalias" if alone else "") + (f" align {align}" if align > 1 else "")
        self._declare(Parameter(name, dtype, space, attributes))
        return Pointer(self, dtype, f"%arg.{name}", space)

    def _declare(self, parameter: Parameter) -> None:
        if any(p.name == parameter.name for p in self.parameters):
            raise LanguageError("two arguments of one name", found=parameter.name)
        if not parameter.name.replace("_", "a").isalnum():
            raise LanguageError("not a name", found=parameter.name)
        self.parameters.append(parameter)

    def constant(self, dtype: DType, number: Number, lanes: int = 1) -> Value:
        """A constant, in every lane of a vector if `lanes` is more than 1."""
        return constant(self, dtype, number, lanes)

    def constant_vector(self, dtype: DType, numbers: Sequence[Number]) -> Value:
        """A vector of constants."""
        return constant_vector(self, dtype, numbers)

    def index(self, number: Operand) -> Value:
        """A number as int64."""
        return Value(self, INT64, 1, "").like(number)

    def stack_array(self, dtype: DType, count: int, align: int = 64) -> Pointer:
        """Uninitialized memory of `count` elements that lives as long as the call."""
        self._stack_bytes += dtype.storage_bytes(count) + align
        if self._stack_bytes > STACK_BYTES:
            raise LanguageError("too much stack", found=self._stack_bytes, expected=f"at most {STACK_BYTES} bytes")
        name = self.fresh()
        self.entry_lines.append(f"{name} = alloca [{count} x {storage_type(dtype)}], align {align}")
        return Pointer(self, dtype, name)

    def table(self, name: str, dtype: DType, numbers: Sequence[Number], align: int = 64) -> Pointer:
        """Read-only memory that holds `numbers`. The same name again in a module must mean the same numbers."""
        element = storage_type(dtype)
        kind = UINT8 if dtype is BOOL else dtype
        body = ", ".join(f"{element} {constant_text(kind, n)}" for n in numbers)
        text = f"@{name} = internal unnamed_addr constant [{len(numbers)} x {element}] [{body}], align {align}"
        if self.declarations.setdefault(name, text) != text:
            raise LanguageError("two different tables of one name", found=name)
        return Pointer(self, dtype, f"@{name}")

    # Variables

    def variable(self, start: V) -> Variable[V]:
        """A variable that lives until the enclosing loop or branch ends."""
        made: Variable[V] = Variable(start)
        self._live.append(made)
        return made

    def variables(self, starts: Mapping[K, V]) -> Variables[K, V]:
        """Several variables under keys."""
        return Variables({key: self.variable(start) for key, start in starts.items()})

    def _state(self, live: int) -> _State:
        return [v.value.name for v in self._live[:live]]

    def _set_state(self, state: _State) -> None:
        for variable, name in zip(self._live, state, strict=False):
            variable.value = variable.value.renamed(name)

    def _leave_scope(self, live: int) -> None:
        for variable in self._live[live:]:
            variable.close()
        del self._live[live:]

    def _join(self, block: Block, edges: list[tuple[str, _State]], live: int) -> None:
        """Go on in `block`, which the `edges` (label, state) lead to; without any, nothing follows."""
        if not edges:
            return
        self.place(block)
        state: _State = []
        for index, variable in enumerate(self._live[:live]):
            names = [(self.resolve(names[index]), label) for label, names in edges]
            if all(name == names[0][0] for name, _ in names):
                state.append(names[0][0])
                continue
            phi = Phi(self.fresh(), variable.value.type_text)
            phi.edges = names
            block.phis.append(phi)
            state.append(phi.name)
        self._set_state(state)

    # Loops

    @contextmanager
    def loop(self, stop: Operand, start: Operand = 0, step: Operand = 1, nonempty: bool = False) -> Iterator[Value]:
        """Repeat the block for an int64 counter in range(start, stop, step).

        `step` is positive and stop + step fits int64. `nonempty` promises at least one round where that cannot be
        seen, and saves a test.
        """
        if isinstance(start, int) and isinstance(stop, int):
            nonempty = start < stop
        if isinstance(step, int) and step <= 0:
            raise LanguageError("a loop's step is positive", found=step)
        first, last, stride = self.index(start), self.index(stop), self.index(step)
        loop = _Loop(self.new_block("done"), len(self._live), [])
        header = self.new_block("loop")
        if nonempty:
            before = self._jump(header)
        else:
            inside = first < last
            before = self.block.label
            loop.exits.append((before, self._state(loop.live)))
            self._branch_on(inside, header, loop.exit)
        counter = Phi(self.fresh(), "i64")
        phis = self._open_loop(header, before, loop)
        header.phis.insert(0, counter)
        counter.edges.append((first.name, before))
        index = Value(self, INT64, 1, counter.name)
        yield index
        latch: str | None = None
        if self.reachable:
            following = index.result(f"add nsw i64 {index.name}, {stride.name}")
            again = following < last
            latch = self.block.label
            counter.edges.append((following.name, latch))
            loop.exits.append((latch, self._state(loop.live)))
            self._branch_on(again, header, loop.exit)
        self._close_loop(header, phis, latch, loop)

    @contextmanager
    def repeat(self) -> Iterator[None]:
        """Repeat the block until `leave` or `leave_if`."""
        loop = _Loop(self.new_block("done"), len(self._live), [])
        header = self.new_block("loop")
        before = self._jump(header)
        phis = self._open_loop(header, before, loop)
        yield
        latch = self._jump(header) if self.reachable else None
        self._close_loop(header, phis, latch, loop)

    def leave(self) -> None:
        """Go behind the innermost loop."""
        loop = self._innermost()
        loop.exits.append((self.block.label, self._state(loop.live)))
        self.end(f"br label %{loop.exit.label}")

    def leave_if(self, condition: Value) -> None:
        """Go behind the innermost loop where `condition` is true."""
        loop = self._innermost()
        loop.exits.append((self.block.label, self._state(loop.live)))
        onward = self.new_block("on")
        self._branch_on(condition, loop.exit, onward)
        self.place(onward)

    def _innermost(self) -> _Loop:
        if not self._loops:
            raise LanguageError("there is no loop to leave")
        return self._loops[-1]

    def _open_loop(self, header: Block, before: str, loop: _Loop) -> list[Phi]:
        phis = []
        for name, variable in zip(self._state(loop.live), self._live, strict=True):
            phi = Phi(self.fresh(), variable.value.type_text)
            phi.edges.append((name, before))
            phis.append(phi)
        header.phis.extend(phis)
        self.place(header)
        self._set_state([phi.name for phi in phis])
        self._loops.append(loop)
        return phis

    def _close_loop(self, header: Block, phis: list[Phi], latch: str | None, loop: _Loop) -> None:
        self._loops.pop()
        for index, phi in enumerate(phis):
            again = self.resolve(self._live[index].value.name)
            if latch is None or again == phi.name:
                self.alias(phi.name, phi.edges[0][0])
                header.phis.remove(phi)
            else:
                phi.edges.append((again, latch))
        self._leave_scope(loop.live)
        self._join(loop.exit, loop.exits, loop.live)

    # Branches

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The block runs if `condition` is true; an `otherwise` block may follow at once."""
        live, before = len(self._live), self._state(len(self._live))
        then, otherwise = self.new_block("then"), self.new_block("else")
        self._branch_on(condition, then, otherwise)
        self.place(then)
        yield
        self._leave_scope(live)
        join = self.new_block("join")
        edge = self._edge(join, live)
        self.place(otherwise)
        self._set_state(before)
        missing = (self._jump(join), before)
        self._join(join, [*([edge] if edge else []), missing], live)
        self._branch = _Branch(join, otherwise, live, before, edge)

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The block runs if the `when` just before it did not."""
        branch = self._branch
        if branch is None or not self.reachable or self.block is not branch.join or branch.join.lines:
            raise LanguageError("otherwise() follows a when() at once")
        self.blocks.remove(branch.join)
        branch.otherwise.lines.clear()
        self.resume(branch.otherwise)
        self._set_state(branch.before)
        yield
        self._leave_scope(branch.live)
        edge = self._edge(branch.join, branch.live)
        branch.join.phis.clear()
        self._join(branch.join, [e for e in (branch.then, edge) if e], branch.live)
        self._branch = None

    def _edge(self, to: Block, live: int) -> tuple[str, _State] | None:
        if not self.reachable:
            return None
        state = self._state(live)
        return self._jump(to), state

    def _jump(self, to: Block) -> str:
        label = self.block.label
        self.end(f"br label %{to.label}")
        return label

    def _branch_on(self, condition: Value, yes: Block, no: Block) -> None:
        if condition.dtype is not BOOL or condition.lanes != 1:
            raise LanguageError("a condition is one bool", found=condition, hint="any_true() or all_true() of a mask.")
        self.end(f"br i1 {condition.name}, label %{yes.label}, label %{no.label}")

    # Calls

    def call(self, function: Function, *arguments: Operand | Pointer) -> Value:
        """The result of a function of the same module (itself too)."""
        if function.returns is None:
            raise LanguageError("the function has no result", found=function.name, hint="Use call_void().")
        return Value(self, function.returns, 1, self.assign(self._call_text(function, arguments)))

    def call_void(self, function: Function, *arguments: Operand | Pointer) -> None:
        """Call a function of the same module that has no result."""
        if function.returns is not None:
            raise LanguageError("the function has a result", found=function.name, hint="Use call().")
        self.line(self._call_text(function, arguments))

    def call_address(self, address: Pointer, returns: DType, *arguments: Value | Pointer) -> Value:
        """The result of the code at `address`, by C's calling convention; the arguments' types are its signature."""
        return Value(self, returns, 1, self.assign(_address_call(address, ir_type(returns), arguments)))

    def call_address_void(self, address: Pointer, *arguments: Value | Pointer) -> None:
        """Call the code at `address`, which has no result, by C's calling convention."""
        self.line(_address_call(address, "void", arguments))

    def _call_text(self, function: Function, arguments: Sequence[Operand | Pointer]) -> str:
        if function.declarations is not self.declarations:
            raise LanguageError("the function belongs to another module", found=function.name)
        if len(arguments) != len(function.parameters):
            raise LanguageError("wrong number of arguments", found=len(arguments), expected=len(function.parameters))
        texts = []
        for parameter, given in zip(function.parameters, arguments, strict=True):
            if not isinstance(given, Pointer):
                given = Value(self, parameter.dtype, 1, "").like(given)
            if given.type_text != parameter.type_text:
                raise LanguageError("an argument of the wrong type", value=parameter.name, found=given)
            texts.append(f"{given.type_text} {given.name}")
        returns = "void" if function.returns is None else ir_type(function.returns)
        return f"call {returns} @{function.name}({', '.join(texts)})"

    def return_(self, value: Operand | None = None) -> None:
        """End the call here, with `value` as its result."""
        if (value is None) != (self.returns is None):
            raise LanguageError("the result does not fit the function", found=value, expected=self.returns)
        if value is None or self.returns is None:
            self.end("ret void")
            return
        result = Value(self, self.returns, 1, "").like(value)
        self.end(f"ret {result.type_text} {result.name}")

    def finish(self) -> None:
        """Called by `Module.function` behind the last instruction."""
        if self.reachable:
            if self.returns is not None:
                raise LanguageError("the function ends without return_()", found=self.name, expected=self.returns)
            self.end("ret void")

    def text(self) -> str:
        """The definition in LLVM's textual form."""
        parameters = ", ".join(f"{p.type_text}{p.attributes} %arg.{p.name}" for p in self.parameters)
        returns = ir_type(self.returns) if self.returns else "void"
        linkage = "internal " if self.internal else "dso_local "
        return f"define {linkage}{returns} @{self.name}({parameters}) #0 {{\n{self.body_text()}\n}}\n"


def _address_call(address: Pointer, returns: str, arguments: Sequence[Value | Pointer]) -> str:
    texts = [f"{a.type_text} {a.name}" for a in arguments]
    return f"call {returns} {address.name}({', '.join(texts)})"
