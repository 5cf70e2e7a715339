"""Caches of rows in Python, which those of the program are held to."""

from collections import OrderedDict


class LeastRecentlyUsed:
    """Sets of a cache that takes one row id after the other. A batch hits what was there when it began."""

    def __init__(self, sets, ways):
        self.ways, self.sets = ways, [OrderedDict() for _ in range(sets)]

    def hits(self, batch):
        found = sum(row_id in self.sets[row_id % len(self.sets)] for row_id in batch)
        for row_id in batch:
            rows = self.sets[row_id % len(self.sets)]
            rows[row_id] = None
            rows.move_to_end(row_id)
            if len(rows) > self.ways:
                rows.popitem(last=False)
        return found


class LeastFrequentlyUsed:
    """Sets of a cache that keeps, call by call, the rows that were asked for most often: those that hit are counted,
    those that come in begin with one more than the least of their set, and the last ones are ahead among equals."""

    def __init__(self, sets, ways):
        self.ways, self.sets, self.clock = ways, [{} for _ in range(sets)], 0

    def hits(self, batch):
        hit = [row_id in self.sets[row_id % len(self.sets)] for row_id in batch]
        came, least = [{} for _ in self.sets], []
        for stamp, (row_id, is_hit) in enumerate(zip(batch, hit, strict=True), start=self.clock):
            rows = self.sets[row_id % len(self.sets)]
            if is_hit:
                rows[row_id] = rows[row_id][0] + 1, stamp
        for rows in self.sets:
            least.append(min((uses for uses, _ in rows.values()), default=0) if len(rows) == self.ways else 0)
        for stamp, (row_id, is_hit) in enumerate(zip(batch, hit, strict=True), start=self.clock):
            number = row_id % len(self.sets)
            if not is_hit:
                came[number][row_id] = least[number] + 1, stamp
        self.clock += len(batch)
        for number, of_set in enumerate(came):
            both = {**self.sets[number], **of_set}
            self.sets[number] = dict(sorted(both.items(), key=lambda each: each[1])[-self.ways :])
        return sum(hit)


MODELS = {"lru": LeastRecentlyUsed, "lfu": LeastFrequentlyUsed}
