"""The 34 province-level units of Vietnam since 2025-07-01, and the 63 that they were made of.

Seven official codes changed their meaning in the merger (15, 24, 44, 52, 80, 82, 91), so a bare code is ambiguous: a
province is named by its slug or by its scheme and code, `vn34:08`.
"""

from __future__ import annotations

import csv
import unicodedata
from functools import cache
from importlib import resources
from typing import Final, Literal, NamedTuple

SCHEME: Final = "vn34"
OLD_SCHEME: Final = "vn63"


class Province(NamedTuple):
    """One province-level unit: its official code in the scheme `vn34`, its name, and the slug that tags carry."""

    code: str
    name: str
    slug: str
    type: Literal["municipality", "province"]


class OldProvince(NamedTuple):
    """One unit of the scheme `vn63`, in force until 2025-06-30, and the code of the one that it became part of."""

    code: str
    name: str
    new_code: str


_ALL: Final = (
    Province("01", "Hà Nội", "ha_noi", "municipality"),
    Province("04", "Cao Bằng", "cao_bang", "province"),
    Province("08", "Tuyên Quang", "tuyen_quang", "province"),
    Province("11", "Điện Biên", "dien_bien", "province"),
    Province("12", "Lai Châu", "lai_chau", "province"),
    Province("14", "Sơn La", "son_la", "province"),
    Province("15", "Lào Cai", "lao_cai", "province"),
    Province("19", "Thái Nguyên", "thai_nguyen", "province"),
    Province("20", "Lạng Sơn", "lang_son", "province"),
    Province("22", "Quảng Ninh", "quang_ninh", "province"),
    Province("24", "Bắc Ninh", "bac_ninh", "province"),
    Province("25", "Phú Thọ", "phu_tho", "province"),
    Province("31", "Hải Phòng", "hai_phong", "municipality"),
    Province("33", "Hưng Yên", "hung_yen", "province"),
    Province("37", "Ninh Bình", "ninh_binh", "province"),
    Province("38", "Thanh Hoá", "thanh_hoa", "province"),
    Province("40", "Nghệ An", "nghe_an", "province"),
    Province("42", "Hà Tĩnh", "ha_tinh", "province"),
    Province("44", "Quảng Trị", "quang_tri", "province"),
    Province("46", "Huế", "hue", "municipality"),
    Province("48", "Đà Nẵng", "da_nang", "municipality"),
    Province("51", "Quảng Ngãi", "quang_ngai", "province"),
    Province("52", "Gia Lai", "gia_lai", "province"),
    Province("56", "Khánh Hoà", "khanh_hoa", "province"),
    Province("66", "Đắk Lắk", "dak_lak", "province"),
    Province("68", "Lâm Đồng", "lam_dong", "province"),
    Province("75", "Đồng Nai", "dong_nai", "municipality"),
    Province("79", "Hồ Chí Minh", "ho_chi_minh", "municipality"),
    Province("80", "Tây Ninh", "tay_ninh", "province"),
    Province("82", "Đồng Tháp", "dong_thap", "province"),
    Province("86", "Vĩnh Long", "vinh_long", "province"),
    Province("91", "An Giang", "an_giang", "province"),
    Province("92", "Cần Thơ", "can_tho", "municipality"),
    Province("96", "Cà Mau", "ca_mau", "province"),
)

PROVINCES: Final[dict[str, Province]] = {province.slug: province for province in _ALL}
BY_CODE: Final[dict[str, Province]] = {province.code: province for province in _ALL}


@cache
def old_provinces() -> tuple[OldProvince, ...]:
    """The 63 units before the merger, by their old code."""
    text = resources.files("fleet_controller.fleet").joinpath("provinces_vn63.csv").read_text(encoding="utf-8")
    return tuple(OldProvince(**row) for row in csv.DictReader(text.splitlines()))


def find_province(text: str) -> Province | None:
    """The province that a person names by its slug, its Vietnamese name or as `vn34:08`; never by a bare code."""
    scheme, _, code = text.partition(":")
    if code:
        return BY_CODE.get(code) if scheme == SCHEME else None
    return PROVINCES.get(slug_of(text))


def find_old_province(text: str) -> OldProvince | None:
    """The unit before the merger that a person names by its name, a slug of it or as `vn63:02`."""
    scheme, _, code = text.partition(":")
    for old in old_provinces():
        if (scheme == OLD_SCHEME and code == old.code) or slug_of(old.name) == slug_of(text):
            return old
    return None


def slug_of(name: str) -> str:
    """A Vietnamese name in the letters a to z: `Đắk Lắk` becomes `dak_lak`."""
    plain = unicodedata.normalize("NFD", name.strip().lower().replace("đ", "d"))
    kept = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "_".join(kept.replace("-", " ").replace("_", " ").split())
