"""All studies of a selection, each once, from a PACS that may page badly, repeat, drop, or give only so many.

A period with as many studies as an answer may have is asked for again by halves, down to a day; so is all time, where
the PACS knows no pages. A day, and a query without dates, is paged; and since some PACS know no offset (Orthanc 1.10
beside ModalitiesInStudy), what came in pages is asked for once more in one piece, until nothing new comes, as long as
the PACS allows so many and they are not too many.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta

from plugin.archive.selection import Selection
from plugin.archive.source import Answer, FoundStudy, NotNow, Query, Source

Ask = Callable[[Query, int, int], Answer]
"""(query, limit, offset): one question, asked again where the PACS has no time."""

ROUND = 10
"""An answer of so many, or a multiple of it, may have been cut by the PACS: such limits are round numbers."""

OVERLAP = 10
"""Pages share a tenth of their entries: what a PACS loses where two of them meet is in the one or in the other."""

LARGEST_CHECK = 5000
"""More studies are not asked for in one piece."""

BEGINNING = "19000101"
"""No study is older."""


class Listing:
    """The studies of a selection.

    Args:
        source: the PACS; `ask` asks it, patiently, and `check` once: it may raise NotNow.
        page: how many studies one answer may bring.

    `facts` counts what happened: answers, repeated, not_matching, malformed, cut, not_verified (what came in pages, and
    could not be asked for in one piece), incomplete_days (of which the PACS gives only a part).
    """

    def __init__(self, source: Source, selection: Selection, *, page: int, ask: Ask, check: Ask | None = None) -> None:
        self._pages_count = source.pages
        self._selection = selection
        self._page = page
        self._ask = ask
        self._check = check or ask
        self._found: set[str] = set()
        self._knows_cap = not source.pages
        self._most = 0
        self._days: Counter[int] = Counter()
        """How many days had so many entries, where there are no pages."""
        self.facts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[list[FoundStudy]]:
        """Batches of studies, none twice."""
        if (uids := self._selection.study_uids) is not None:
            yield [FoundStudy(study_instance_uid=uid) for uid in uids]
            return
        for query in self._selection.queries():
            before, self._most = len(self._found), 0
            self._days.clear()
            for batch in self._period(query):
                new = {s.study_instance_uid: s for s in batch if s.study_instance_uid not in self._found}
                self._found.update(new)
                if chosen := [study for study in new.values() if self._is_chosen(study, query)]:
                    yield chosen
            if len(self._found) - before > self._most:  # so many in one answer, and not more: they are all it gives
                self.facts["incomplete_days"] += self._days[self._most]

    def _is_chosen(self, study: FoundStudy, query: Query) -> bool:
        """Some PACS leave out of account what they were asked for."""
        fits = (
            _is_inside(study, query)
            and (not study.modalities or not query.modality or query.modality in study.modalities)
            and (not study.patient_id or not query.patient_id or query.patient_id == study.patient_id)
        )
        self.facts["not_matching"] += not fits
        return fits and self._selection.fits(study)

    # ---- periods ---------------------------------------------------------------------------------------

    def _period(self, query: Query) -> Iterator[list[FoundStudy]]:
        if query.first_date == query.last_date != "" or (not query.first_date and self._pages_count):
            yield from self._paged(query)
            return
        if query.first_date:
            query = replace(query, last_date=query.last_date or date.today().strftime("%Y%m%d"))
        if query.first_date and query.first_date >= query.last_date:
            yield from self._paged(query)
            return
        answer = self._first_answer(query)
        yield answer.studies
        if not all(_is_inside(study, query) for study in answer.studies):  # it does not heed dates: no use in halves
            yield from self._paged(query)
        elif answer.cut or self._may_be_cut(answer.entries):
            parts = _halves(query) if query.first_date else (replace(query, first_date=BEGINNING),)
            for part in parts:
                yield from self._period(part)

    def _may_be_cut(self, entries: int) -> bool:
        return entries >= self._page or (entries > 0 and entries % ROUND == 0)

    # ---- pages -----------------------------------------------------------------------------------------

    def _paged(self, query: Query) -> Iterator[list[FoundStudy]]:
        """Every match: page by page, then in one piece where there was more than a page, until nothing new comes."""
        seen: set[str] = set()
        answer = self._first_answer(query)
        limit, offset, first = self._page, 0, answer.entries
        while True:
            distinct = {study.study_instance_uid: study for study in answer.studies}
            self.facts["repeated"] += len(answer.studies) - len(distinct)
            new = [study for uid, study in distinct.items() if uid not in seen]
            seen.update(distinct)
            yield new
            if not self._pages_count:
                self._note_day(query, answer)
                return
            if not (answer.cut or self._may_be_cut(first)):
                return
            if new and limit == self._page:
                offset += max(1, len(distinct) - 1 - len(distinct) // OVERLAP)
                answer = self._answer(query, limit, offset)
            elif new or limit == self._page:
                limit = max(2 * len(seen), self._page + 1)
                checked = self._in_one_piece(query, limit)
                if checked is None:
                    return
                answer = checked
            else:
                return

    def _in_one_piece(self, query: Query, limit: int) -> Answer | None:
        """What came in pages once more; None where that is too much, or more than the PACS allows to be asked for."""
        try:
            if limit <= LARGEST_CHECK:
                return self._note(self._check(query, limit, 0))
        except NotNow:
            pass
        self.facts["not_verified"] += 1
        return None

    def _note_day(self, query: Query, answer: Answer) -> None:
        """A day cannot be halved."""
        if query.first_date and answer.cut:
            self.facts["incomplete_days"] += 1
        elif query.first_date:
            self._days[answer.entries] += 1

    def _first_answer(self, query: Query) -> Answer:
        """To a query. With the first of them it is found out whether the PACS gives fewer than a page."""
        answer = self._answer(query, self._page, 0)
        if not self._knows_cap and 0 < answer.entries < self._page:
            self._knows_cap = True
            here = {study.study_instance_uid for study in answer.studies}
            more = self._answer(query, self._page, answer.entries)
            if any(study.study_instance_uid not in here for study in more.studies):
                self._page = answer.entries
        return answer

    def _answer(self, query: Query, limit: int, offset: int) -> Answer:
        return self._note(self._ask(query, limit, offset))

    def _note(self, answer: Answer) -> Answer:
        self._most = max(self._most, answer.entries)
        self.facts["answers"] += 1
        self.facts["malformed"] += answer.malformed
        self.facts["cut"] += answer.cut
        return answer


def _is_inside(study: FoundStudy, query: Query) -> bool:
    return not study.date or (query.first_date or "0") <= study.date <= (query.last_date or "9")


def _halves(query: Query) -> tuple[Query, Query]:
    """The earlier and the later half of a period of two days or more."""
    first, last = (datetime.strptime(day, "%Y%m%d").date() for day in (query.first_date, query.last_date))
    middle = first + (last - first) // 2
    return (
        replace(query, last_date=middle.strftime("%Y%m%d")),
        replace(query, first_date=(middle + timedelta(days=1)).strftime("%Y%m%d")),
    )
