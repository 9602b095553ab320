"""Follows the objects of a library through source code: what the code asks of each class, and how it calls it.

The library's own classes say what their methods return. Modules of pybind11 say so in docstrings, which begin with
signatures: `create_network(self: tensorrt.Builder, flags: int = 0) -> tensorrt.INetworkDefinition`.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROUNDS = 8
"""Values pass from callers to functions and back; each round takes them one call further."""


def signatures(function: Any, name: str) -> list[inspect.Signature]:
    """The signatures of a function or method, without `self`; empty if it does not tell them."""
    lines = re.findall(rf"^(?:\d+\. )?{name}\((.*)\)(?: -> .*)?$", inspect.getdoc(function) or "", re.MULTILINE)
    if lines[1:]:  # the first line of several is for all
        lines = [line for line in lines if line != "*args, **kwargs"]
    if not lines and inspect.isroutine(function):
        try:
            own = inspect.signature(function)
        except ValueError:
            return []
        return [own.replace(parameters=[each for each in own.parameters.values() if each.name != "self"])]
    return [inspect.Signature(_parameters(line)) for line in lines]


def constructors(kind: type) -> list[inspect.Signature]:
    """The signatures of a class; one that passes other keywords on has those of its bases."""
    known = signatures(kind.__init__, "__init__")
    every = inspect.Parameter.VAR_KEYWORD
    if not any(each.kind is every for signature in known for each in signature.parameters.values()):
        return known
    starts = [vars(each)["__init__"] for each in kind.__mro__[:-1] if "__init__" in vars(each)]
    found = {name: each for start in starts for name, each in inspect.signature(start).parameters.items()}
    named = [each for each in found.values() if each.name != "self" and each.kind is not every]
    return [inspect.Signature([each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in named])]


def _parameters(line: str) -> list[inspect.Parameter]:
    found, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for text in _split(line):
        declared, _, default = text.partition(" = ")
        name = declared.partition(":")[0].strip()
        if text == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif text.startswith("*"):
            every = inspect.Parameter.VAR_KEYWORD if text.startswith("**") else inspect.Parameter.VAR_POSITIONAL
            found.append(inspect.Parameter(name.strip("*"), every))
        elif name not in ("self", "/"):
            found.append(inspect.Parameter(name, kind, default=default or inspect.Parameter.empty))
    return found


def _split(line: str) -> list[str]:
    """The parts of a line between commas that are in no brackets."""
    parts, depth = [""], 0
    for character in line:
        depth += (character in "([{<") - (character in ")]}>")
        parts = [*parts, ""] if character == "," and not depth else [*parts[:-1], parts[-1] + character]
    return [part.strip() for part in parts if part.strip()]


@dataclass(frozen=True)
class Real:
    """An object of the library itself: a module, a class, a member of an enumeration."""

    it: Any


@dataclass(frozen=True)
class Instance:
    """An object of a class of the library."""

    kind: type


@dataclass(frozen=True)
class Method:
    """A method of such an object."""

    kind: type
    name: str


@dataclass(frozen=True)
class Row:
    """A tuple, or an iterable of which only one value is known."""

    items: tuple[Any, ...]
    many: bool = False


@dataclass(eq=False)
class Function:
    """A function of the code."""

    name: str
    node: Any
    file: str
    outer: "Scope"
    owner: "Class | None" = None
    values: dict[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass(eq=False)
class Class:
    """A class of the code."""

    name: str
    bases: list[Any] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    """Attributes of its objects, and its functions."""


@dataclass(frozen=True)
class Object:
    """An object of a class of the code; with a function, its method."""

    kind: Class
    method: Function | None = None


@dataclass(eq=False)
class Scope:
    """Names and their values, and those around them."""

    values: dict[str, Any]
    file: str
    outer: "Scope | None" = None

    def find(self, name: str) -> Any:
        """The value of a name; None if it is not known."""
        if name in self.values:
            return self.values[name]
        return None if self.outer is None else self.outer.find(name)


@dataclass(frozen=True, order=True)
class Asked:
    """What a line asks of the library."""

    owner: str
    member: str
    place: str


class Follower:
    """Reads files of one package and follows the objects of a library in them.

    Attributes:
        asked: members that the code asks for, and that are there.
        missing: members that are not there.
        refused: calls that no signature takes, and assignments to what cannot be set.
        called: functions, methods and classes that are called.
        functions: the functions of the code, with the values of their arguments.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        package: str,
        module: Any,
        results: Mapping[str, Any],
        choices: Mapping[str, bool] = MappingProxyType({}),
    ) -> None:
        """Follow.

        Args:
            paths: the files.
            package: the package that they are in.
            module: the library's module.
            results: what functions of the code and methods of other libraries return, where their own text does not
                tell; by `Class.name`.
            choices: whether `it is NAME` is true, by NAME; what is not reached then is left out.
        """
        self.package, self.module, self.results, self.choices = package, module, results, choices
        self.functions: dict[int, Function] = {}
        self.classes: dict[int, Class] = {}
        trees = {path.stem: ast.parse(path.read_text()) for path in paths}
        self.files = {stem: Scope({}, f"{stem}.py") for stem in trees}
        for _ in range(ROUNDS):
            self.asked, self.missing, self.called = set[Asked](), set[Asked](), set[Asked]()
            self.refused: set[str] = set()
            for stem, tree in trees.items():
                self._body(tree.body, self.files[stem], None)
            for function in list(self.functions.values()):
                scope = Scope(function.values, function.file, function.outer)
                self._body(function.node.body, scope, function)

    # Statements.

    def _body(self, body: Sequence[ast.stmt], scope: Scope, function: Function | None) -> bool:
        """Follow statements; whether what comes after them is reached."""
        for statement in body:
            truth = self._truth(statement.test) if isinstance(statement, ast.If) else None
            if isinstance(statement, ast.If) and truth is not None:
                self._value(statement.test, scope)
                if not self._body(statement.body if truth else statement.orelse, scope, function):
                    return False
            else:
                self._statement(statement, scope, function)
        return not body or not isinstance(body[-1], ast.Return | ast.Raise)

    def _truth(self, node: ast.expr) -> bool | None:
        """Whether a condition is true by the choice alone; None if that is open."""
        match node:
            case ast.Compare(ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Name(id=name)]):
                return (self.choices[name] is isinstance(op, ast.Is)) if name in self.choices else None
            case ast.BoolOp(op=ast.And(), values=values):
                return False if any(self._truth(each) is False for each in values) else None
        return None

    def _statement(self, node: ast.stmt, scope: Scope, function: Function | None) -> None:
        kinds: dict[type, Callable[[Any, Scope], None]] = {
            ast.FunctionDef: self._define,
            ast.ClassDef: self._define,
            ast.ImportFrom: self._import,
            ast.Assign: self._assign,
            ast.AnnAssign: self._declare,
        }
        if type(node) in kinds:
            kinds[type(node)](node, scope)
        elif isinstance(node, ast.Return) and node.value is not None and function is not None:
            function.result = self._value(node.value, scope) or function.result
        elif isinstance(node, ast.For):
            self._bind(node.target, _item(self._value(node.iter, scope)), scope)
            self._body([*node.body, *node.orelse], scope, function)
        else:
            for child in ast.iter_child_nodes(node):
                self._inside(child, scope, function)

    def _inside(self, node: ast.AST, scope: Scope, function: Function | None) -> None:
        if isinstance(node, ast.expr):
            self._value(node, scope)
        elif isinstance(node, ast.withitem):
            self._value(node.context_expr, scope)
        elif isinstance(node, ast.stmt):
            self._statement(node, scope, function)
        else:  # a handler of exceptions
            self._body(getattr(node, "body", []), scope, function)

    def _define(self, node: ast.FunctionDef | ast.ClassDef, scope: Scope) -> None:
        is_class = isinstance(node, ast.ClassDef)
        scope.values[node.name] = self._class(node, scope) if is_class else self._function(node, scope, None)

    def _assign(self, node: ast.Assign, scope: Scope) -> None:
        value = self._value(node.value, scope)
        for target in node.targets:
            self._bind(target, value, scope)

    def _declare(self, node: ast.AnnAssign, scope: Scope) -> None:
        value = None if node.value is None else self._value(node.value, scope)
        self._bind(node.target, value or self._annotated(node.annotation, scope), scope)

    def _function(self, node: ast.FunctionDef, scope: Scope, owner: Class | None) -> Function:
        made = self.functions.setdefault(id(node), Function(node.name, node, scope.file, scope, owner))
        every = node.args
        for argument in [*every.posonlyargs, *every.args, *every.kwonlyargs]:
            if argument.annotation is not None:
                made.values[argument.arg] = made.values.get(argument.arg) or self._annotated(argument.annotation, scope)
        if owner is not None and every.args:
            made.values[every.args[0].arg] = Object(owner)
        name = node.name if owner is None else f"{owner.name}.{node.name}"
        made.result = self.results.get(name, made.result)
        return made

    def _class(self, node: ast.ClassDef, scope: Scope) -> Class:
        made = self.classes.setdefault(id(node), Class(node.name))
        made.bases = [base for each in node.bases if (base := self._value(each, scope)) is not None]
        inside = Scope(made.values, scope.file, scope)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                made.values[statement.name] = self._function(statement, scope, made)
            else:
                self._statement(statement, inside, None)
        return made

    def _import(self, node: ast.ImportFrom, scope: Scope) -> None:
        for alias in node.names:
            name, found = alias.asname or alias.name, None
            if node.module and node.module.startswith(f"{self.package}."):
                found = self.files[node.module.removeprefix(f"{self.package}.")].find(alias.name)
            elif node.module and node.module.startswith("polygraphy"):
                found = _imported(node.module, alias.name)
            scope.values[name] = found

    def _annotated(self, node: ast.expr, scope: Scope) -> Any:
        """An object of a class of the code that an annotation names."""
        names = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
        kinds = [kind for name in names if isinstance(kind := scope.find(name), Class)]
        return Object(kinds[0]) if kinds else None

    def _bind(self, target: ast.expr, value: Any, scope: Scope) -> None:
        match target:
            case ast.Name():
                scope.values[target.id] = value or scope.values.get(target.id)
            case ast.Tuple():
                for index, each in enumerate(target.elts):
                    self._bind(each, _item(value, index), scope)
            case ast.Attribute():
                owner = self._value(target.value, scope)
                if isinstance(owner, Object):
                    owner.kind.values[target.attr] = value or owner.kind.values.get(target.attr)
                elif isinstance(owner, Instance):
                    self._member(owner, target, scope)
                    found = getattr(owner.kind, target.attr, None)
                    if found is not None and getattr(found, "fset", None) is None:
                        self.refused.add(f"{_place(target, scope)}: {owner.kind.__name__}.{target.attr} is not set")
            case _:
                self._value(target, scope)

    # Expressions.

    def _value(self, node: ast.expr, scope: Scope) -> Any:
        kinds: dict[type, Callable[[Any, Scope], Any]] = {
            ast.Name: lambda each, names: names.find(each.id),
            ast.Attribute: lambda each, names: self._member(self._value(each.value, names), each, names),
            ast.Call: self._call,
            ast.Tuple: self._row,
            ast.List: self._row,
            ast.Subscript: self._subscript,
            ast.IfExp: self._either,
            ast.BoolOp: self._both,
            ast.ListComp: lambda each, names: Row((self._comprehension(each, [each.elt], names),), many=True),
            ast.SetComp: lambda each, names: Row((self._comprehension(each, [each.elt], names),), many=True),
            ast.GeneratorExp: lambda each, names: Row((self._comprehension(each, [each.elt], names),), many=True),
            ast.DictComp: lambda each, names: self._comprehension(each, [each.key, each.value], names),
            ast.Lambda: self._lambda,
            ast.NamedExpr: self._walrus,
        }
        if type(node) in kinds:
            return kinds[type(node)](node, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child, scope)
        return None

    def _row(self, node: ast.Tuple | ast.List, scope: Scope) -> Row:
        return Row(tuple(self._value(each, scope) for each in node.elts))

    def _subscript(self, node: ast.Subscript, scope: Scope) -> Any:
        value = self._value(node.value, scope)
        self._value(node.slice, scope)
        return _item(value, node.slice.value if isinstance(node.slice, ast.Constant) else 0)

    def _either(self, node: ast.IfExp, scope: Scope) -> Any:
        self._value(node.test, scope)
        chosen, other = self._value(node.body, scope), self._value(node.orelse, scope)
        return chosen or other

    def _both(self, node: ast.BoolOp, scope: Scope) -> None:
        for each in node.values:
            self._value(each, scope)
            if isinstance(node.op, ast.And) and self._truth(each) is False:
                break

    def _walrus(self, node: ast.NamedExpr, scope: Scope) -> Any:
        value = self._value(node.value, scope)
        self._bind(node.target, value, scope)
        return value

    def _lambda(self, node: ast.Lambda, scope: Scope) -> None:
        names = dict.fromkeys(argument.arg for argument in node.args.args)
        self._value(node.body, Scope(names, scope.file, scope))

    def _comprehension(self, node: Any, results: list[ast.expr], scope: Scope) -> Any:
        inside = Scope({}, scope.file, scope)
        for each in node.generators:
            self._bind(each.target, _item(self._value(each.iter, inside)), inside)
            for condition in each.ifs:
                self._value(condition, inside)
        return [self._value(result, inside) for result in results][-1]

    def _member(self, owner: Any, node: ast.Attribute, scope: Scope) -> Any:
        name = node.attr
        if isinstance(owner, Object | Class):
            return self._own_member(owner, node, scope)
        kind = owner.it if isinstance(owner, Real) else getattr(owner, "kind", None)
        if kind is None or isinstance(owner, Method) or name.startswith("__"):
            return None
        fact = Asked(getattr(kind, "__qualname__", "") or "", name, _place(node, scope))
        if not hasattr(kind, name):
            self.missing.add(fact)
            return None
        self.asked.add(fact)
        if isinstance(owner, Real):
            return Real(getattr(kind, name))
        found = getattr(kind, name)
        if isinstance(found, property):
            return self._returned(found.fget)
        return Method(kind, name) if callable(found) else None

    def _own_member(self, owner: Object | Class, node: ast.Attribute, scope: Scope) -> Any:
        kind = owner.kind if isinstance(owner, Object) else owner
        for each in _lineage(kind):
            if isinstance(each, Class) and node.attr in each.values:
                found = each.values[node.attr]
                if not isinstance(found, Function) or isinstance(owner, Class):
                    return found
                decorators = [getattr(decorator, "id", "") for decorator in found.node.decorator_list]
                return found.result if "property" in decorators else Object(kind, found)
        for each in _lineage(kind):
            if isinstance(each, Real) and isinstance(each.it, type):
                return self._member(Instance(each.it), node, scope)
        return None

    def _call(self, node: ast.Call, scope: Scope) -> Any:
        function = self._value(node.func, scope)
        given = [self._value(each, scope) for each in node.args]
        named = {each.arg: self._value(each.value, scope) for each in node.keywords if each.arg}
        match function:
            case Function():
                return self._pass(function, given, named)
            case Object(method=Function() as method):
                return self._pass(method, [Object(function.kind), *given], named)
            case Class():
                start = next((each.values["__init__"] for each in _lineage(function) if _has_start(each)), None)
                if start is not None:
                    self._pass(start, [Object(function), *given], named)
                return Object(function)
            case Method():
                known = signatures(getattr(function.kind, function.name), function.name)
                self._check(known, function.name, node, scope, function.kind.__name__)
                own = self.results.get(f"{function.kind.__name__}.{function.name}")
                return own or self._returned(getattr(function.kind, function.name))
            case Real(it=type() as kind):
                self._check(constructors(kind), "__init__", node, scope, kind.__name__)
                return Instance(kind)
            case Instance():
                return self.results.get(f"{function.kind.__name__}.__call__")
        return None

    def _pass(self, function: Function, given: list[Any], named: Mapping[str, Any]) -> Any:
        """Let a function have arguments; what it returned in the round before."""
        every = function.node.args
        names = [argument.arg for argument in [*every.posonlyargs, *every.args]]
        for name, value in [*zip(names, given, strict=False), *named.items()]:
            function.values[name] = value or function.values.get(name)
        return function.result

    def _check(self, known: list[inspect.Signature], name: str, node: ast.Call, scope: Scope, owner: str) -> None:
        place = _place(node, scope)
        self.called.add(Asked(owner, name, place))
        if any(isinstance(each, ast.Starred) for each in node.args):
            return
        given, named = [None] * len(node.args), {each.arg: None for each in node.keywords if each.arg}
        if not any(takes(each, given, named) for each in known):
            self.refused.add(f"{place}: {owner}.{name} takes {' or '.join(map(str, known)) or 'unknown arguments'}")

    def _returned(self, function: Any) -> Any:
        """The value that a docstring promises, if it is an object of the library or a list of them."""
        promised = re.search(r"\) -> (.+)$", inspect.getdoc(function) or "", re.MULTILINE)
        for name in re.findall(r"\w+", promised[1] if promised else ""):
            kind = getattr(self.module, name, None)
            if isinstance(kind, type):
                return Row((Instance(kind),), many=True) if "ist[" in promised[1] else Instance(kind)
        return None


def takes(signature: inspect.Signature, given: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether a call has the arguments of a signature."""
    try:
        signature.bind(*given, **named)
    except TypeError:
        return False
    return True


def _imported(module: str, name: str) -> Real:
    try:
        return Real(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return Real(getattr(importlib.import_module(module), name))


def _has_start(kind: Any) -> bool:
    return isinstance(kind, Class) and "__init__" in kind.values


def _lineage(kind: Class) -> list[Any]:
    """A class of the code and its bases."""
    return [kind, *(each for base in kind.bases for each in (_lineage(base) if isinstance(base, Class) else [base]))]


def _item(value: Any, index: Any = 0) -> Any:
    """One of the values of a row; None if it is not known."""
    if not isinstance(value, Row) or not isinstance(index, int):
        return None
    return value.items[0] if value.many else dict(enumerate(value.items)).get(index)


def _place(node: ast.AST, scope: Scope) -> str:
    return f"{scope.file}:{getattr(node, 'lineno', 0)}"
