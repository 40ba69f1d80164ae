"""Containers that both sides see: each side has a replica, and changes travel with every message.

A list that a program is handed, and keeps, is the same list to it whenever the tests change it
later, and the other way round. So each container that crosses gets a number, and a copy on the
other side. What was first shown together makes a :class:`ReplicaGroup`. While a call runs, its
arguments are held by both sides; afterwards the side that ran it looks at the reference counts:
what its program kept is *kept* in step from then on, what is large is *cached* (the next call that
passes it sends nothing but its number, unless it has changed), and anything else is forgotten.
"""

from __future__ import annotations

import gc
import io
import json
import operator
import random
import sys
import types
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .values import INLINE, Malformed, Reader, Writer, set_state

__all__ = ["BY_TAG", "KINDS", "LARGE", "Incoming", "Kind", "Outgoing", "ReplicaGroup", "kind_of"]

LARGE = 200
"""The items from which on a group is cached."""

_CARRIERS = frozenset((tuple, frozenset, dict))
_PLAIN = INLINE | {int, bytes}
_DELTA = 64  # the items from which on only the changed ones travel


@dataclass(frozen=True)
class Kind:
    """A type of containers that can change: how its content is written, made and filled."""

    tag: str
    base: type
    content: Callable[[Writer, Any], list[Any]]
    """The content as it is written, without the tag."""
    fill: Callable[[Reader, Any, list[Any]], None]
    """Put a content (the tag in front) into a replica in place."""
    make: Callable[[type, list[Any]], Any] | None = None
    """A new replica from a class and a content, where ``__new__`` alone makes none."""

    def new(self, cls: type, content: list[Any]) -> Any:
        """An empty replica; none of its class's own code runs."""
        make: Any = self.base
        return self.make(cls, content) if self.make else make.__new__(cls)


def _pairs(writer: Writer, value: Any) -> list[Any]:
    return [writer.pairs(dict.keys(value), dict.values(value))]


def _ordered_pairs(writer: Writer, value: Any) -> list[Any]:
    keys = list(OrderedDict.__iter__(value))
    return [writer.pairs(keys, [dict.__getitem__(value, key) for key in keys])]


def _fill_list(reader: Reader, target: Any, content: list[Any]) -> None:
    if len(content) > 2:  # changes only
        if len(target) != content[2]:
            raise Malformed("changes of another list")
        for index, code in content[1]:
            list.__setitem__(target, index, reader.read(code))
        return
    list.__setitem__(target, slice(None), reader.items(content[1]))


def _fill_dict(reader: Reader, target: Any, content: list[Any]) -> None:
    pairs = reader.pairs(content[1])
    if content[0] == "f":
        target.default_factory = reader.read(content[2])
    if content[-1] != "+":  # the whole of it, not only what changed
        dict.clear(target)
    dict.update(target, pairs)


def _fill_ordered(reader: Reader, target: Any, content: list[Any]) -> None:
    pairs = reader.pairs(content[1])
    OrderedDict.clear(target)
    for key, value in pairs.items():
        OrderedDict.__setitem__(target, key, value)


def _fill_set(reader: Reader, target: Any, content: list[Any]) -> None:
    items = reader.items(content[1])
    set.clear(target)
    set.update(target, items)


def _fill_deque(reader: Reader, target: Any, content: list[Any]) -> None:
    items = reader.items(content[1])
    deque.clear(target)
    deque.extend(target, items)


def _fill_bytes(reader: Reader, target: Any, content: list[Any]) -> None:
    data = reader.read(content[1])
    if type(data) is not bytes:
        raise Malformed("no bytes")
    target[:] = data


def _fill_array(reader: Reader, target: Any, content: list[Any]) -> None:
    target[:] = array(content[2], reader.items(content[1]))


def _stream(writer: Writer, value: Any) -> list[Any]:
    return [None, 0] if value.closed else [writer.write(value.getvalue()), value.tell()]


def _fill_stream(reader: Reader, target: Any, content: list[Any]) -> None:
    data = reader.read(content[1])
    if data is None:
        target.close()
    elif content[0] == "S":
        target.__setstate__((str(data), "\n", int(content[2]), None))
    else:
        target.__setstate__((bytes(data), int(content[2]), None))


def _fill_namespace(reader: Reader, target: Any, content: list[Any]) -> None:
    state = reader.pairs(content[1])
    vars(target).clear()
    vars(target).update(state)


def _random_state(writer: Writer, value: Any) -> list[Any]:
    version, numbers, gauss = value.getstate()
    return [version, list(numbers), gauss]


def _new_deque(cls: type, length: int | None) -> Any:
    made: Any = deque.__new__(cls)
    deque.__init__(made, (), length)
    return made


def _new_stream(base: Any, cls: type) -> Any:
    made = base.__new__(cls)
    base.__init__(made)
    return made


KINDS: tuple[Kind, ...] = (
    Kind("l", list, lambda w, v: [w.items(list.__iter__(v))], _fill_list),
    Kind("C", Counter, _pairs, _fill_dict),
    Kind("o", OrderedDict, _ordered_pairs, _fill_ordered),
    Kind(
        "f",
        defaultdict,
        lambda w, v: [*_pairs(w, v), w.write(v.default_factory)],
        _fill_dict,
    ),
    Kind("d", dict, _pairs, _fill_dict),
    Kind("s", set, lambda w, v: [w.items(set.__iter__(v))], _fill_set),
    Kind(
        "q",
        deque,
        lambda w, v: [w.items(deque.__iter__(v)), v.maxlen],
        _fill_deque,
        lambda cls, content: _new_deque(cls, content[2]),
    ),
    Kind("a", bytearray, lambda w, v: [w.write(bytes(v))], _fill_bytes),
    Kind(
        "A",
        array,
        lambda w, v: [w.items(v.tolist()), v.typecode],
        _fill_array,
        lambda cls, content: array.__new__(cls, content[2]),
    ),
    Kind("S", io.StringIO, _stream, _fill_stream, lambda cls, _: _new_stream(io.StringIO, cls)),
    Kind("B", io.BytesIO, _stream, _fill_stream, lambda cls, _: _new_stream(io.BytesIO, cls)),
    Kind("n", types.SimpleNamespace, lambda w, v: _pairs(w, vars(v)), _fill_namespace),
    Kind(
        "R",
        random.Random,
        _random_state,
        lambda r, t, c: t.setstate((c[1], tuple(c[2]), c[3])),
    ),
)
"""Subclasses come before what they derive from."""

_BY_TYPE = {kind.base: kind for kind in KINDS}
BY_TAG = {kind.tag: kind for kind in KINDS}


def kind_of(cls: type) -> Kind | None:
    """The kind of container that a class is or derives from."""
    found = _BY_TYPE.get(cls)
    if found is None and cls is not random.SystemRandom:
        found = next((kind for kind in KINDS if issubclass(cls, kind.base)), None)
    return found


class ReplicaGroup:
    """Containers that were first shown together, and what both sides last agreed on of them."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.members: dict[int, Any] = {}
        self.kept = False
        """Whether a program of the other side may look at it at any time, as one of ours may."""
        self.fresh = True
        """Whether this side made it, and the other side has not answered since."""
        self.pinned = False
        """Whether it holds objects of a class of ours, which the other side asks things."""
        self.active = 0
        """The calls under way that pass it."""
        self.links: set[int] = set()
        """Roots of groups that this one's containers hold containers of."""
        self._parts: dict[type, list[Any]] = {}
        self._numbers: dict[type, list[int]] = {}
        self._odd: dict[int, Any] = {}
        self._flat: list[Any] = []
        self._lengths: list[int] = []
        self._counts: dict[type, int] = {}
        self._texts: dict[int, str] = {}
        self._free: tuple[list[Any], list[int]] | None = None

    def add(self, number: int, value: Any, odd: bool) -> None:
        """Take in a container; ``odd`` where only its written content tells of a change."""
        self.members[number] = value
        base = next((base for base in _FLAT if isinstance(value, base)), None)
        if odd or base is None:
            self._odd[number] = value
        else:
            self._parts.setdefault(base, []).append(value)
            self._numbers.setdefault(base, []).append(number)

    def discard(self, number: int) -> None:
        """Take out a container that was not shown after all."""
        value = self.members.pop(number)
        self._odd.pop(number, None)
        for base, parts in self._parts.items():
            if number in self._numbers[base]:
                place = self._numbers[base].index(number)
                assert parts[place] is value
                del parts[place], self._numbers[base][place]

    @property
    def size(self) -> int:
        """About how many items it has."""
        return len(self._flat) + len(self.members)

    def record(self, texts: dict[int, str]) -> None:
        """Take what is there now for what both sides have."""
        self._flat, self._lengths = list(self._items()), self._sizes()
        self._counts = {base: len(parts) for base, parts in self._parts.items()}
        self._texts.update(texts)
        self._free = None

    def _items(self) -> Iterator[Any]:
        """What is in all containers now, one after the other."""
        return chain.from_iterable(
            chain.from_iterable(map(read, parts))
            for base, parts in self._parts.items()
            for read in _FLAT[base]
        )

    def _sizes(self) -> list[int]:
        return [size for base, parts in self._parts.items() for size in map(_LENGTHS[base], parts)]

    def changed(self) -> list[int]:
        """The numbers of the containers that are not what both sides agreed on."""
        if self._sizes() == self._lengths and all(map(operator.is_, self._items(), self._flat)):
            return []
        found = []
        for number, value, old in self._slices():
            base = next(base for base in _FLAT if isinstance(value, base))
            new = [list(read(value)) for read in _FLAT[base]]
            same = all(
                len(a) == len(b) and all(map(operator.is_, a, b))
                for a, b in zip(old, new, strict=True)
            )
            if not same:
                found.append(number)
        return found

    def _slices(self) -> Iterator[tuple[int, Any, list[list[Any]]]]:
        """Each container with its recorded items."""
        start = place = 0
        for base, count in self._counts.items():  # those that were added since are new anyway
            lengths = self._lengths[place : place + count]
            columns = []
            for _ in _FLAT[base]:
                cuts = []
                for length in lengths:
                    cuts.append(self._flat[start : start + length])
                    start += length
                columns.append(cuts)
            for index in range(count):
                value = self._parts[base][index]
                yield self._numbers[base][index], value, [cuts[index] for cuts in columns]
            place += count

    def recorded(self, number: int) -> list[list[Any]] | None:
        """The recorded items of one container, or nothing where it is odd."""
        return next((old for found, _, old in self._slices() if found == number), None)

    def odd(self) -> Iterator[tuple[int, Any, str | None]]:
        """The containers whose written content has to be compared, with the last one."""
        for number, value in self._odd.items():
            yield number, value, self._texts.get(number)

    def held(self) -> bool:
        """Whether anything but this group and the border's table refers to what is in it.

        Where that is not certain, the answer is yes.
        """
        if self._free is not None:
            nodes, counts = self._free
            if list(map(sys.getrefcount, nodes)) == counts:
                return False
        nodes = list(self.members.values())
        own = len(nodes)
        frontier = nodes
        seen = set(map(id, nodes))
        while frontier:
            inside = {
                id(found): found
                for found in gc.get_referents(*frontier)
                if type(found) in _CARRIERS and id(found) not in seen and _carries(found)
            }
            frontier = list(inside.values())
            seen.update(inside)
            nodes = nodes + frontier
        inside, frontier = {}, []
        inner = Counter(map(id, gc.get_referents(*nodes)))
        inner.update(map(id, self._flat))
        counts = list(map(sys.getrefcount, nodes))
        for place, count in enumerate(counts):
            # A member: the list here, the members, the parts, the table; and the call's argument.
            expected = inner[id(nodes[place])] + (5 if place < own else 2)
            if count > expected:
                return True
        self._free = nodes, list(map(sys.getrefcount, nodes))
        return False


def _carries(value: Any) -> bool:
    items = value.values() if type(value) is dict else value
    return any(type(item) not in _PLAIN for item in items)


_FLAT: dict[type, tuple[Callable[[Any], Any], ...]] = {
    list: (list.__iter__,),
    OrderedDict: (OrderedDict.__iter__, dict.values),
    dict: (dict.keys, dict.values),
    set: (set.__iter__,),
    deque: (deque.__iter__,),
}
"""How to see at once, without running foreign code, what is in many containers of a type."""

_LENGTHS: dict[type, Callable[[Any], int]] = {
    list: list.__len__,
    OrderedDict: dict.__len__,
    dict: dict.__len__,
    set: set.__len__,
    deque: deque.__len__,
}


class Outgoing(Writer):
    """The writer of one message: also of what has changed since the last one."""

    def __init__(self, border: Any) -> None:
        super().__init__(border)
        self._peer = border
        self.group: ReplicaGroup | None = None
        """The group that new containers belong to; none at the top, where each makes its own."""
        self.touched: dict[int, ReplicaGroup] = {}
        self.passed: dict[int, ReplicaGroup] = {}
        """What is passed by itself, not only kept in step."""
        self.new: list[int] = []
        """All numbers that this message gives."""
        self._pending: deque[tuple[int, Any, ReplicaGroup]] = deque()
        self._unsynced: deque[ReplicaGroup] = deque()
        self._texts: dict[int, dict[int, str]] = {}

    def introduce(self, number: int, value: Any, *, own: bool, by_state: bool) -> None:
        """Show a container for the first time; its content is written later.

        ``own`` where its class is known to the other side by description only; ``by_state`` where
        its attributes cross as well.
        """
        group = self.group
        if group is None:
            group = self._peer.new_group(number)
            self.touched[group.root] = group
        group.add(number, value, by_state)
        group.pinned = group.pinned or own
        self._peer.group_of[number] = group
        self._texts.setdefault(group.root, {})
        self._pending.append((number, value, group))

    def touch(self, group: ReplicaGroup) -> None:
        """Make sure that what a group holds is known to the other side as it is now."""
        if self.group is not None and group is not self.group:
            self.group.links.add(group.root)
        todo = [group]
        while todo:
            found = todo.pop()
            if found.root not in self.touched:
                self.touched[found.root] = found
                self._unsynced.append(found)
                groups = self._peer.groups
                todo += [groups[root] for root in found.links if root in groups]

    def finish(self) -> None:
        """Write the contents of all that is new or has changed."""
        while self._pending or self._unsynced:
            if self._pending:
                number, value, self.group = self._pending.popleft()
                content = self._peer.content(self, value)
                self.table.append([number, content, self.group.root])
                if number in self.group._odd:
                    self._texts[self.group.root][number] = json.dumps(content)
            else:
                self._sync(self._unsynced.popleft())
            self.group = None
        for root, texts in self._texts.items():
            self.touched[root].record(texts)

    def _sync(self, group: ReplicaGroup) -> None:
        self.group = group
        texts = self._texts.setdefault(group.root, {})
        for number, value, text in list(group.odd()):
            content = self._peer.content(self, value)
            texts[number] = json.dumps(content)
            if texts[number] != text:
                self.table.append([number, content])
        changed = group.changed()
        if not changed and not texts:
            del self._texts[group.root]
        for number in changed:
            value = group.members[number]
            content = self._delta(group, number, value) or self._peer.content(self, value)
            self.table.append([number, content])

    def _delta(self, group: ReplicaGroup, number: int, value: Any) -> list[Any] | None:
        """Only what has changed in a long list or dictionary, where that is little."""
        kind = type(value)
        if (kind is not list and kind is not dict) or len(value) < _DELTA:
            return None
        old = group.recorded(number)
        if old is None:
            return None
        if kind is list:
            if len(old[0]) != len(value):
                return None
            places = [i for i, item in enumerate(value) if item is not old[0][i]]
            if len(places) * 4 > len(value):
                return None
            items = self.items([value[i] for i in places])
            return ["l", [list(pair) for pair in zip(places, items, strict=True)], len(value)]
        keys, values = list(value), list(value.values())
        count = len(old[0])
        if len(keys) < count or not all(map(operator.is_, keys, old[0])):
            return None
        places = [i for i in range(len(keys)) if i >= count or values[i] is not old[1][i]]
        if len(places) * 4 > len(keys):
            return None
        return ["d", self.pairs([keys[i] for i in places], [values[i] for i in places]), "+"]


class Incoming(Reader):
    """The reader of one message."""

    def __init__(self, border: Any) -> None:
        super().__init__(border)
        self._peer = border
        self._group: ReplicaGroup | None = None
        self.touched: dict[int, ReplicaGroup] = {}
        """The groups that the message passes or changes, and those that these refer to."""

    def numbered(self, number: int) -> Any:
        """The value with this number; raises :class:`LookupError`."""
        group = self._peer.group_of.get(number)
        if group is not None:
            if self._group is not None and group is not self._group:
                self._group.links.add(group.root)
            self._touch(group)
        return self._peer.table[number]

    def _touch(self, group: ReplicaGroup) -> None:
        todo = [group]
        while todo:
            found = todo.pop()
            if found.root not in self.touched:
                self.touched[found.root] = found
                groups = self._peer.groups
                todo += [groups[root] for root in found.links if root in groups]

    def load(self, table: list[list[Any]]) -> None:
        """Read the definitions and changes of one message.

        Classes come first, then empty containers, then what may refer to both; contents come last.
        """
        if not table:
            return
        peer = self._peer
        contents: list[tuple[int, Any, list[Any], ReplicaGroup]] = []
        for number, content, *root in sorted(table, key=_rank):
            if number in peer.table:
                contents.append((number, peer.table[number], content, peer.group_of[number]))
                continue
            if type(number) is not int or number < 2 or number % 2 == peer.parity:
                raise Malformed(f"{number} is no number of the other side's")
            if not root:
                peer.enter(number, peer.define(self, number, content))
                continue
            made = self._make(content)
            group = peer.groups.get(root[0]) or peer.new_group(root[0])
            group.fresh = False
            peer.enter(number, made)
            peer.group_of[number] = group
            group.add(number, made, content[0] == "u" and content[3] is not None)
            contents.append((number, made, content, group))
        texts: dict[int, dict[int, str]] = {}
        for number, target, content, group in contents:
            self._group = group
            self._touch(group)
            self._fill(target, content)
            texts.setdefault(group.root, {})[number] = json.dumps(content)
        self._group = None
        for root_number, written in texts.items():
            peer.groups[root_number].record(written)

    def _make(self, content: list[Any]) -> Any:
        if content[0] != "u":
            kind = BY_TAG[content[0]]
            return kind.new(kind.base, content)
        cls, inner = self.read(content[1]), content[2]
        if not isinstance(cls, type):
            raise Malformed("an object without a class")
        if inner is None:
            return object.__new__(cls)
        kind = BY_TAG[inner[0]]
        if not issubclass(cls, kind.base):
            raise Malformed(f"a {cls.__name__} is no {kind.base.__name__}")
        return kind.new(cls, inner)

    def _fill(self, target: Any, content: list[Any]) -> None:
        cls = type(target)
        if content[0] == "u":
            if self.read(content[1]) is not cls:
                raise Malformed(f"a {cls.__name__} cannot become another thing")
            if content[2] is not None:
                kind = BY_TAG[content[2][0]]
                if not issubclass(cls, kind.base):
                    raise Malformed(f"a {cls.__name__} cannot be filled so")
                kind.fill(self, target, content[2])
            if content[3] is not None:
                set_state(target, self.pairs(content[3]))
            return
        kind = BY_TAG[content[0]]
        if kind.base is not cls:
            raise Malformed(f"a {cls.__name__} cannot be filled as {content[0]!r}")
        kind.fill(self, target, content)


def _rank(entry: list[Any]) -> int:
    return 0 if entry[1][0] == "c" else 1 if len(entry) > 2 else 2
