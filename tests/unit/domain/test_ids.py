"""Ids are UUIDs of version 4, as every library reads them."""

import uuid

from gateway.domain.ids import new_id


def test_ids_are_random_uuids_in_the_usual_form() -> None:
    several = [new_id() for _ in range(1000)]
    assert len(set(several)) == len(several)
    for each in several:
        read = uuid.UUID(each)
        assert str(read) == each
        assert (read.version, read.variant) == (4, uuid.RFC_4122)
    assert {each[19] for each in several} == set("89ab")
