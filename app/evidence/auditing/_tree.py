"""One log, entry by entry: is each in its place, unaltered, and part of the tree that was signed?

What one change does to a tree is seen in several places: the entry's own hash, the nodes above it,
the log's end, the checkpoints. The node above tells which of two values was there when it was made,
so that an altered text and an altered hash are told apart, and one change is one finding.
"""

import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.evidence._fields import write_time
from app.evidence.auditing._findings import Code, Finding, entries
from app.evidence.transparency.merkle import HASH_SIZE, Frontier, leaf_hash, node_hash
from app.strict_json import read_object

# Index, body, subtrees, created_at.
Row = tuple[int, bytes, bytes, datetime.datetime]
# Event, index, body.
Take = Callable[[str, int, bytes], None]
Interval = tuple[int, int]

BATCH = 8192
# Of the hashes that a disputed node or root may have, how many are tried.
_MOST_COMBINATIONS = 1024
# Of moved entries, how many are also compared with the hashes that they left behind.
_MOST_MOVED = 100_000
_NEVER = 2**64


@dataclass(frozen=True, slots=True)
class Mark:
    """A checkpoint that was validly signed.

    Attributes:
        name: What findings call it.
        size: How many entries it covers.
        root: Of the tree over them.
    """

    name: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The end of a log as the database has it.

    Attributes:
        size: How many entries it has.
        frontier: The hashes of its complete subtrees, one after another.
    """

    size: int
    frontier: bytes


@dataclass(slots=True)
class _Node:
    """A complete subtree as stored, and what else it may be by what lies under it.

    Attributes:
        level: Its height.
        index: Its place among those of its height.
        hash: As stored; None where its entry is missing.
        made: Other hashes, each with those of the two nodes that give it; of an entry: its text's.
        children: What it is made of, as long as that is open.
    """

    level: int
    index: int
    hash: bytes | None
    made: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    children: tuple["_Node", ...] = ()

    @property
    def first(self) -> int:
        return self.index << self.level

    @property
    def last(self) -> int:
        return ((self.index + 1) << self.level) - 1

    @property
    def options(self) -> list[bytes]:
        """Every hash it may have, the stored one first."""
        return [*([] if self.hash is None else [self.hash]), *self.made]


@dataclass(slots=True)
class _Shift:
    """Entries in a row whose texts name places that are equally far away."""

    first: int
    last: int
    distance: int


class TreeAudit:
    """Reads one log; after that it can tell what is wrong with it.

    Attributes:
        size: One more than the largest index that was read.
        root: Of the log at its end, as far as it can be computed.
        agreed: Checkpoints that the entries agree with.
    """

    def __init__(self, end: End, marks: Sequence[Mark], take: Take, doubt: Take) -> None:
        """Prepare.

        Args:
            end: Of the log.
            marks: Its validly signed checkpoints.
            take: Gets each entry that is in its place and whose hash is that of its text.
            doubt: Gets the others.
        """
        self.size = 0
        self.root: bytes | None = None
        self.agreed: list[Mark] = []
        self._end = end
        self._take, self._doubt = take, doubt
        self._marks = sorted(marks, key=lambda mark: mark.size)
        # Sizes at which something is compared.
        sizes = {mark.size for mark in marks} | {end.size}
        self._stops = iter([*sorted(sizes), _NEVER])
        self._stop = next(self._stops)
        self._frontier = Frontier()
        self._nodes: list[_Node] | None = None  # instead of the frontier while something is open
        self._contradicted: list[Mark] = []
        self._is_end_altered = False
        self._ranges: list[tuple[Code, int, int]] = []
        self._texts: dict[tuple[Code, int], str] = {}
        self._shifts: list[_Shift] = []
        self._moved: dict[int, tuple[int, bytes, bytes | None]] = {}

    def read(self, rows: Iterable[Row], advance: Callable[[int], None]) -> None:
        """Read the entries of the log in the order of their indices.

        Args:
            rows: All of them.
            advance: Is told now and then how many more were read.
        """
        count = 0
        take = self._take
        for index, body, subtrees, created_at in rows:
            while index >= self._stop:
                self._skip_to(self._stop)
                self._compare()
            leaf = leaf_hash(body)
            is_sound = False
            if self._nodes is None and index == self.size:
                frontier, completed = self._frontier.append(leaf)
                if b"".join(completed) == subtrees:
                    self._frontier, self.size, is_sound = frontier, index + 1, True
            if is_sound and (event := _event_of(body, index, created_at)):
                take(event, index, body)
            else:
                self._look(index, body, leaf, subtrees, created_at, is_in_tree=is_sound)
            count += 1
            if count == BATCH:
                advance(count)
                count = 0
        while self._stop <= self.size:
            self._compare()
        advance(count)

    def findings(self) -> list[Finding]:
        """Return what is wrong; call it once everything was read."""
        for node in self._nodes or ():
            self._settle(node, node.hash)
        self._judge_size()
        return [*self._misplaced(), *self._damaged(), *self._ends(), *self._contradictions()]

    # --- Entries -----------------------------------------------------------------------------

    def _look(
        self,
        index: int,
        body: bytes,
        leaf: bytes,
        subtrees: bytes,
        created_at: datetime.datetime,
        *,
        is_in_tree: bool,
    ) -> None:
        """Take in an entry that something is wrong with, or that comes after such a one.

        Args:
            index: Its place.
            body: Its text.
            leaf: The hash of that.
            subtrees: As stored.
            created_at: As stored.
            is_in_tree: Whether it was taken into the tree, as all its hashes are right.
        """
        claim, time, event = _read(body)
        is_moved = claim is not None and claim != index
        if not is_in_tree:
            if index < self.size:
                self._note(Code.ENTRY_INSERTED, index, index, f"There are two entries {index}.")
                return
            self._skip_to(index)
            stored = self._split(index, subtrees, is_moved=is_moved)
            if claim is not None and is_moved and len(self._moved) < _MOST_MOVED:
                self._moved[index] = (claim, leaf, stored[0])
            # A text that was moved alone does not fit the hash that stayed: that is one change.
            self._grow(index, stored[0] if is_moved else leaf, stored)
        if claim is not None and is_moved:
            self._shift(index, claim - index)
        if is_moved or leaf != subtrees[:HASH_SIZE]:
            self._doubt(event, index, body)
        elif claim is None:
            self._note(
                Code.ENTRY_INSERTED,
                index,
                index,
                f"Entry {index} is not in the form of an entry, so this service did not write it.",
            )
        else:
            if time != write_time(created_at):
                self._note(
                    Code.TIME_ALTERED,
                    index,
                    index,
                    f"Entry {index} was written at {time}, as its text says, which its hash covers;"
                    f" the column created_at says {write_time(created_at)}.",
                )
            self._take(event, index, body)

    def _shift(self, index: int, distance: int) -> None:
        last = self._shifts[-1] if self._shifts else None
        if last is not None and (last.last + 1, last.distance) == (index, distance):
            last.last = index
        else:
            self._shifts.append(_Shift(index, index, distance))

    def _skip_to(self, index: int) -> None:
        """Pass over entries that are not there."""
        if index <= self.size:
            return
        if (last := min(index, self._end.size) - 1) >= self.size:
            self._note(Code.ENTRIES_MISSING, self.size, last)
        before = {(node.level, node.index): node for node in self._open()}
        self._nodes = []
        for place in _places(index):
            known = before.pop(place, None)
            self._nodes.append(_Node(*place, None) if known is None else known)
        for node in before.values():
            self._settle(node, node.hash)
        self.size = index

    def _split(self, index: int, subtrees: bytes, *, is_moved: bool) -> list[bytes | None]:
        """Return the hashes that an entry stores; None for each that is not there."""
        count = (index ^ (index + 1)).bit_length()
        if len(subtrees) == HASH_SIZE * count:
            starts = range(0, len(subtrees), HASH_SIZE)
            return [subtrees[start : start + HASH_SIZE] for start in starts]
        if not is_moved:  # Else it brought along the hashes of the place that it had.
            self._note(
                Code.HASH_ALTERED,
                index,
                index,
                f"Entry {index} completes {count} subtrees, so it stores {HASH_SIZE * count} bytes"
                f" of hashes; there are {len(subtrees)}.",
            )
        return [None] * count

    # --- The tree, as long as something in it is open ------------------------------------------

    def _open(self) -> list[_Node]:
        if self._nodes is None:
            places = _places(self.size)
            self._nodes = [
                _Node(*place, found)
                for place, found in zip(places, self._frontier.hashes, strict=True)
            ]
        return self._nodes

    def _close(self) -> None:
        """Go on quickly if nothing is open any more."""
        hashes = [node.hash for node in self._nodes or () if not node.made]
        known = [one for one in hashes if one is not None]
        if self._nodes is not None and len(known) == len(self._nodes):
            self._frontier, self._nodes = Frontier(self.size, tuple(known)), None

    def _grow(self, index: int, leaf: bytes | None, stored: Sequence[bytes | None]) -> None:
        """Add an entry, and settle what the nodes that it completes decide.

        Args:
            index: Its place.
            leaf: What its own hash should be, if that is known.
            stored: The hashes that are stored with it.
        """
        nodes = self._open()
        node = _Node(0, index, stored[0] or leaf)
        if leaf is not None and node.hash != leaf:
            node.made[leaf] = ()
        for found in stored[1:]:
            node = self._join(nodes.pop(), node, found)
        nodes.append(node)
        self.size = index + 1
        self._close()

    def _join(self, left: _Node, right: _Node, stored: bytes | None) -> _Node:
        """Return the node over two others, which tells what they were when it was made."""
        made: dict[bytes, tuple[bytes, ...]] = {}
        pairs = itertools.product(left.options, right.options)
        for pair in itertools.islice(pairs, _MOST_COMBINATIONS):
            made.setdefault(node_hash(*pair), pair)
        parent = _Node(left.level + 1, left.index >> 1, stored or next(iter(made), None))
        if not made:
            return parent  # Something under it is missing: what is stored is all that is known.
        if parent.hash in made:
            self._settle(left, made[parent.hash][0])
            self._settle(right, made[parent.hash][1])
        else:
            parent.made, parent.children = made, (left, right)
        return parent

    def _settle(self, node: _Node, chosen: bytes | None) -> None:
        """Say what was altered of a node, now that its hash is known to have been `chosen`."""
        if not node.made:
            return
        made, stored, children = node.made, node.hash, node.children
        node.made, node.hash, node.children = {}, chosen, ()
        if chosen is None or chosen == stored:
            open_ones = [child for child in children if child.made]
            for child in open_ones:
                self._settle(child, child.hash)
            if not open_ones:
                self._note(Code.ENTRY_ALTERED, node.first, node.last)
            return
        what = "its text gives" if not node.level else f"entries {node.first} to {node.last} give"
        self._note(
            Code.HASH_ALTERED,
            node.last,
            node.last,
            f"Entry {node.last} stores another hash than {what}; what was computed from that hash"
            " shows that it was the right one once.",
        )
        for child, part in zip(children, made[chosen], strict=False):
            self._settle(child, part)

    # --- What the tree is compared with --------------------------------------------------------

    def _compare(self) -> None:
        """Compare the tree as it is now with the checkpoints of its size, and with the end."""
        size, self._stop = self._stop, next(self._stops)
        for mark in self._marks:
            if mark.size == size:
                self._compare_mark(mark)
        if size == self._end.size:
            self._compare_end()

    def _compare_mark(self, mark: Mark) -> None:
        if self._nodes is None:
            agrees = self._frontier.root() == mark.root
            (self.agreed if agrees else self._contradicted).append(mark)
            return
        if any(not node.options for node in self._nodes):
            return  # Entries are missing, which is a finding of its own.
        choices = itertools.product(*(node.options for node in self._nodes))
        for hashes in itertools.islice(choices, _MOST_COMBINATIONS):
            if Frontier(mark.size, hashes).root() == mark.root:
                for node, chosen in zip(self._nodes, hashes, strict=True):
                    self._settle(node, chosen)
                self.agreed.append(mark)
                self._close()
                return
        self._contradicted.append(mark)

    def _compare_end(self) -> None:
        nodes = self._open()
        stored = self._end.frontier
        if len(stored) != HASH_SIZE * len(nodes):
            self._is_end_altered = True
        else:
            starts = range(0, len(stored), HASH_SIZE)
            hashes = tuple(stored[start : start + HASH_SIZE] for start in starts)
            self._compare_nodes(nodes, hashes)
        known = [node.hash for node in nodes if node.hash is not None]
        if len(known) == len(nodes):
            self.root = Frontier(self._end.size, tuple(known)).root()
        self._close()

    def _compare_nodes(self, nodes: Sequence[_Node], hashes: tuple[bytes, ...]) -> None:
        """Compare the last nodes with those that the end names."""
        differing = []
        for node, found in zip(nodes, hashes, strict=True):
            if found in node.options:
                self._settle(node, found)
            elif node.options:
                differing.append(node)
        if not differing:
            return
        root = Frontier(self._end.size, hashes).root()
        if vouching := [mark for mark in self._contradicted if mark.root == root]:
            # The end is what was signed, so the entries are not.
            for node in differing:
                self._settle(node, node.hash)
                self._note(Code.ENTRY_ALTERED, node.first, node.last)
            self.agreed += vouching
            self._contradicted = [mark for mark in self._contradicted if mark not in vouching]
        else:
            self._is_end_altered = True

    # --- Findings ------------------------------------------------------------------------------

    def _note(self, code: Code, first: int, last: int, text: str | None = None) -> None:
        ranges = self._ranges
        if ranges and ranges[-1][0] is code and ranges[-1][2] + 1 == first:
            ranges[-1] = (code, ranges[-1][1], last)
        else:
            ranges.append((code, first, last))
            if text is not None:
                self._texts[code, first] = text

    def _judge_size(self) -> None:
        """Note what is missing at the end, or stands beyond it."""
        if self.size < self._end.size:
            if self._end.frontier == self._as_stored().to_bytes():
                self._is_end_altered = True
            else:
                self._note(Code.ENTRIES_MISSING, self.size, self._end.size - 1)
        elif self.size > self._end.size:
            if any(mark.size > self._end.size for mark in self.agreed):
                self._is_end_altered = True
            else:
                self._note(
                    Code.ENTRY_INSERTED,
                    self._end.size,
                    self.size - 1,
                    f"The log ends with {self._end.size} entries, and the database has"
                    f" {entries(self._end.size, self.size - 1)} beside: no service wrote that.",
                )

    def _as_stored(self) -> Frontier:
        hashes = [node.hash or b"" for node in self._open()]
        return Frontier(self.size, tuple(hashes))

    def _misplaced(self) -> Iterator[Finding]:
        if not self._shifts:
            return
        rows = _merged((shift.first, shift.last) for shift in self._shifts)
        claims = _merged(
            (shift.first + shift.distance, shift.last + shift.distance) for shift in self._shifts
        )
        if rows == claims:
            names = ", ".join(entries(*row) for row in rows[:8])
            yield Finding(
                Code.ENTRIES_REORDERED,
                names,
                f"The texts of {names} stand in each other's places: each names the index that it"
                " was written with.",
            )
            yield from self._altered_on_the_way()
            return
        for shift in self._shifts:
            yield self._shifted(shift)

    def _altered_on_the_way(self) -> Iterator[Finding]:
        for index, (claim, leaf, stored) in self._moved.items():
            left_behind = self._moved[claim][2] if claim in self._moved else None
            if leaf != stored and left_behind is not None and leaf != left_behind:
                yield Finding(
                    Code.ENTRY_ALTERED,
                    f"entry {index}",
                    f"The text at entry {index} says that it is entry {claim}, and has not the hash"
                    " that was stored there either: it was altered, too.",
                )

    def _shifted(self, shift: _Shift) -> Finding:
        claimed = shift.first + shift.distance
        reaches_end = shift.last >= self.size - 1
        if shift.distance < 0 and reaches_end:
            where = entries(claimed, shift.first - 1)
            return Finding(
                Code.ENTRY_INSERTED,
                where,
                f"The texts from entry {shift.first} on name places {-shift.distance} before their"
                f" own: {where} was put in, and what followed was moved.",
            )
        if shift.distance > 0 and reaches_end and shift.last > shift.first:
            where = entries(shift.first, claimed - 1)
            return Finding(
                Code.ENTRIES_MISSING,
                where,
                f"The texts from entry {shift.first} on name places {shift.distance} behind their"
                f" own: {where} was taken out, and what followed was moved up.",
            )
        where = entries(shift.first, shift.last)
        return Finding(
            Code.ENTRY_INSERTED,
            where,
            f"The text at {where} says that it is {entries(claimed, shift.last + shift.distance)},"
            " which is another place: it was put there.",
        )

    def _damaged(self) -> Iterator[Finding]:
        moved = [(shift.first, shift.last) for shift in self._shifts]
        hashes = {Code.ENTRY_ALTERED, Code.HASH_ALTERED}
        for code, first, last in sorted(self._ranges, key=lambda found: found[1:]):
            if code in hashes and any(first <= end and start <= last for start, end in moved):
                continue  # What was moved does not fit where it is: that has been said.
            where = entries(first, last)
            text = self._texts.get((code, first)) if first == last else None
            yield Finding(code, where, text or _SENTENCES[code].format(where.capitalize()))

    def _ends(self) -> Iterator[Finding]:
        if self._is_end_altered:
            yield Finding(
                Code.HEAD_ALTERED,
                "its end",
                f"The row of the log in audit_log says that it ends with {self._end.size} entries"
                " and with certain hashes, and the entries say otherwise.",
            )
        reach = max(self.size, self._end.size)
        beyond = [mark for mark in self._marks if mark.size > reach]
        if beyond:
            yield Finding(
                Code.LOG_TRUNCATED,
                f"{entries(reach, beyond[-1].size - 1)}",
                f"{beyond[-1].name} of {beyond[-1].size} entries was signed, and the log has"
                f" {reach}: what came after was cut off, or an older state was restored.",
            )

    def _contradictions(self) -> Iterator[Finding]:
        altered = [found[1:] for found in self._ranges if found[0] is Code.ENTRY_ALTERED]
        contradicted = [
            mark
            for mark in self._contradicted
            # Where a checkpoint ends amid entries that the node over them shows to be altered, it
            # was compared before that node was read.
            if not any(first < mark.size <= last for first, last in altered)
        ]
        if not contradicted:
            return
        first = contradicted[0]
        before = [mark for mark in self.agreed if mark.size < first.size]
        after = [mark for mark in self.agreed if mark.size > first.size]
        if before:
            since = (
                f" Up to the {before[-1].size} entries of {_lower(before[-1].name)} nothing was"
                " changed: it was rewritten from there on."
            )
        else:
            since = " No earlier checkpoint is at hand that it agrees with."
        more = len(contradicted) - 1
        others = f" {more} more contradict it." if more else ""
        if after:
            others += (
                f" {after[0].name} of {after[0].size} entries agrees with the log as it is now: the"
                " key signed two histories."
            )
        yield Finding(
            Code.LOG_FORKED,
            f"entries 0 to {first.size - 1}",
            f"{first.name} of {first.size} entries was signed, and has another root than the log's"
            f" entries give: the log was rewritten since.{since}{others}",
        )


_SENTENCES = {
    Code.ENTRY_ALTERED: "{} has another text than was written: its hash is not the one that the"
    " tree was made from.",
    Code.HASH_ALTERED: "{}: the stored hashes are not those that the texts give, and that the tree"
    " above was made from.",
    Code.TIME_ALTERED: "{}: the column created_at does not say the times that the texts say, which"
    " their hashes cover.",
    Code.ENTRIES_MISSING: "{}: not in the database.",
    Code.ENTRY_INSERTED: "{}: not written by this service.",
}


def _event_of(body: bytes, index: int, created_at: datetime.datetime) -> str:
    """Return the event of an entry of this place and time; nothing if it may not be one.

    Canonical JSON sorts keys: event, index, payload, subject, time. So the beginning and the end of
    the bytes tell, without a look at what lies between.
    """
    stop = body.find(b'"', 10)
    time = created_at.isoformat(timespec="microseconds")[:26]
    if (
        body.startswith(b'{"event":"')
        and body.startswith(b'","index":%d,"payload":{' % index, stop)
        and body.endswith(b',"time":"%sZ"}' % time.encode())
        and created_at.utcoffset() == _NO_OFFSET
    ):
        return body[10:stop].decode(errors="replace")
    return ""


_NO_OFFSET = datetime.timedelta()


def _read(body: bytes) -> tuple[int | None, str, str]:
    """Return index, time and event that a text names; no index if it is not one of an entry."""
    try:
        found = read_object(body)
    except ValueError:
        return None, "", ""
    index, time, event = found.get("index"), found.get("time"), found.get("event")
    expected = {"index", "time", "event", "subject", "payload"}
    if set(found) != expected or type(index) is not int or index < 0:
        return None, "", str(event)
    return index, str(time), str(event)


def _places(size: int) -> list[tuple[int, int]]:
    """Return the complete subtrees that a tree consists of, the largest first."""
    places, start = [], 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            places.append((level, start >> level))
            start += 1 << level
    return places


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return intervals of whole numbers in order, adjacent ones as one."""
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first == merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return merged


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
