"""The table of provinces and what a person may call one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fleet_controller.fleet.provinces import (
    BY_CODE,
    PROVINCES,
    find_old_province,
    find_province,
    old_provinces,
    slug_of,
)


def test_there_are_34_provinces_made_of_63() -> None:
    """The table has the 34 units since 2025-07-01, and each of the 63 before belongs to one of them."""
    assert len(PROVINCES) == len(BY_CODE) == 34
    assert len(old_provinces()) == 63
    assert {old.new_code for old in old_provinces()} == set(BY_CODE)


def test_every_slug_is_that_of_its_name() -> None:
    """A slug is the Vietnamese name in the letters a to z."""
    assert all(slug_of(province.name) == slug == province.slug for slug, province in PROVINCES.items())


def test_seven_cities_are_centrally_run() -> None:
    """Đồng Nai is the seventh centrally-run city."""
    cities = {slug for slug, province in PROVINCES.items() if province.type == "municipality"}
    assert cities == {"ha_noi", "hai_phong", "hue", "da_nang", "dong_nai", "ho_chi_minh", "can_tho"}


def test_seven_codes_changed_their_meaning() -> None:
    """A bare code is ambiguous: these name one unit before the merger and another one after it."""
    changed = {
        old.code
        for old in old_provinces()
        if old.code in BY_CODE and slug_of(BY_CODE[old.code].name) != slug_of(old.name)
    }
    assert changed == {"15", "24", "44", "52", "80", "82", "91"}


@pytest.mark.parametrize("text", ["dak_lak", "Đắk Lắk", "dak-lak", "vn34:66", "ĐẮK LẮK"])
def test_a_province_is_found_by_what_a_person_writes(text: str) -> None:
    """Slug, name and scheme with code all name the same province."""
    found = find_province(text)
    assert found is not None
    assert found.code == "66"


@pytest.mark.parametrize("text", ["66", "vn63:66", "phu_yen", "", "dak lak province"])
def test_what_is_ambiguous_is_not_found(text: str) -> None:
    """A bare code, a code of the old scheme and a province that is no more name nothing."""
    assert find_province(text) is None


def test_an_old_province_is_recognised() -> None:
    """Who writes a province of before the merger can be told what it is part of."""
    by_name, by_code = find_old_province("Phú Yên"), find_old_province("vn63:54")
    assert by_name == by_code
    assert by_name is not None
    assert BY_CODE[by_name.new_code].slug == "dak_lak"


def test_the_old_table_has_no_row_twice() -> None:
    """63 codes, 63 names."""
    rows = old_provinces()
    assert len({row.code for row in rows}) == len({row.name for row in rows}) == 63


def test_the_old_table_is_valid_csv() -> None:
    """The packaged file has a header and three columns in each row."""
    path = Path(__file__).parents[2] / "fleet_controller" / "fleet" / "provinces_vn63.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["code", "name", "new_code"]
    assert {len(row) for row in rows} == {3}
