"""Groups: by expression, by a table, by links, by ranges and by blocks of numbers."""

from __future__ import annotations

import pytest

from medsam3.registry import grouping
from medsam3.registry.grouping import GroupRule, GroupTable, check_group, group_finder


def groups(rule, ids, root=None):
    return [group_finder(rule, root)(item_id) for item_id in ids]


def test_an_expression_joins_what_it_captures():
    assert groups(r"^(p\d)_", ["p1_a", "p1_b", "p2_a"]) == ["p1", "p1", "p2"]
    assert groups(r"_(C\d\d).*_(\d{4})$", ["LowNoise_C25/x_0007", "HighNoise_C25/x_0007"]) == ["C25/0007"] * 2
    assert groups(r"^(?:(sub-\d+)_.*|(.+))$", ["sub-12_ses-3", "other"]) == ["sub-12", "other"]


def test_a_table_with_bare_cr_line_ends_and_blanks_around_its_cells(tmp_path):
    (tmp_path / "Grade.csv").write_bytes(
        b"name,patient ID, grade (GlaS)\rtestA_1, 5, benign\rtrain_1, 5, benign\rtrain_2,12,x"
    )
    rule = GroupRule(table=GroupTable("Grade.csv", "name", "patient ID"))
    assert groups(rule, ["train_1", "testA_1", "train_2"], tmp_path) == ["5", "5", "12"]
    with pytest.raises(ValueError, match=r"Grade\.csv: no row of name 'train_3'"):
        groups(rule, ["train_3"], tmp_path)


def test_a_table_with_a_byte_order_mark_semicolons_and_a_key(tmp_path):
    (tmp_path / "info.csv").write_text("uuid;subject_id\na-1;s7\nb-2;s7\n", encoding="utf-8-sig")
    rule = GroupRule(table=GroupTable("info.csv", "uuid", "subject_id", ";"), key=r"^([^/]+)/")
    assert groups(rule, ["a-1/s000", "a-1/s001", "b-2/s000"], tmp_path) == ["s7"] * 3


@pytest.mark.parametrize(
    "content, message",
    [
        ("id,patient\na,1\n", r"no column 'name'; there are: id, patient"),
        ("name,patient\na,1\na,2\n", r"'a' is in two groups, '1' and '2'"),
        ("", r"no column 'name'; there are: none"),
        (None, r"t\.csv: cannot be read \(No such file"),
    ],
)
def test_a_table_that_is_not_right(content, message, tmp_path):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        group_finder(GroupRule(table=GroupTable("t.csv", "name", "patient")), tmp_path)


def test_links_join_by_steps_and_what_is_not_linked_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "MANIFESTS", tmp_path)
    (tmp_path / "copies.csv").write_text("copy,original\nx,c\ny,b\nx,b\nz,q\n")
    assert groups(GroupRule(links="copies.csv"), ["b", "c", "x", "y", "q", "z", "lonely"]) == [*"bbbb", *"qq", "lonely"]
    with pytest.raises(ValueError, match=r"nowhere\.csv: not a file of two ids a row"):
        group_finder(GroupRule(links="nowhere.csv"), tmp_path)


def test_pairs_of_an_audit_link_patients_where_a_key_names_them(tmp_path):
    (tmp_path / "audit_pairs.csv").write_text(
        "distance,dataset,item,other_dataset,other_item\n"
        "0,small,p1_a,small,p2_b\n3,small,p2_c,other,p3_d\n4,small,p5_a,small,p5_b\n"
    )
    rule = GroupRule(links="audit_pairs.csv", key=r"^(p\d)_")
    find = group_finder(rule, tmp_path, "small", splits=tmp_path)
    assert [find(item) for item in ("p1_z", "p2_y", "p3_d", "p5_a")] == ["p1", "p1", "p3", "p5"]


def test_ranges_hold_both_ends_and_every_number():
    rule = GroupRule(ranges=((1, 25), (26, 50)))
    assert groups(rule, ["1", "25", "26", "img_0050.x"]) == ["1-25", "1-25", "26-50", "26-50"]
    with pytest.raises(ValueError, match="51 is in none of them"):
        groups(rule, ["51"])
    with pytest.raises(ValueError, match="finds nothing in 'abc'"):
        groups(rule, ["abc"])


def test_blocks_of_consecutive_numbers_and_a_key_that_names_the_number():
    assert groups(GroupRule(blocks=100), ["00099", "00100", "00199", "200"]) == [
        "0-99",
        "100-199",
        "100-199",
        "200-299",
    ]
    assert groups(GroupRule(blocks=10, key=r"^(\d+)_"), ["7_91", "12_91"]) == ["0-9", "10-19"]


@pytest.mark.parametrize(
    "rule, message",
    [
        (GroupRule(), "exactly one of table, links, ranges, blocks, has none"),
        (GroupRule(blocks=3, links="x"), "has links and blocks"),
        (GroupRule(blocks=0), "blocks=0"),
        (GroupRule(ranges=((5, 4),)), r"\[5, 4\] is empty"),
        (GroupRule(blocks=3, key=r"\d+"), "group.key=.*needs brackets"),
        ("(p", "group='\\(p': not a regular expression"),
    ],
)
def test_a_rule_that_is_not_right(rule, message):
    with pytest.raises(ValueError, match=message):
        check_group(rule)


def test_a_rule_in_yaml_reaches_the_items(folder, save, reader_of):
    for number in (1, 9, 10):
        for place in ("images", "masks"):
            save(folder / place / f"{number}.png", [[1, 0]] * 4)
    items = reader_of(group={"blocks": 10}).items()
    assert {item.id: item.group for item in items} == {"1": "0-9", "9": "0-9", "10": "10-19"}
    with pytest.raises(ValueError, match=r"small\.yaml: group: unknown key 'block'.*'blocks'"):
        reader_of(group={"block": 10})
    with pytest.raises(ValueError, match=r"configs/dataset/small\.yaml: group\.ranges: 10 is in none"):
        reader_of(group={"ranges": [[1, 9]]}).items()
