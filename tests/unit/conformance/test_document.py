"""protocol.md comes with the package, and what is in it is found."""

from __future__ import annotations

import pytest

from tcprepl.conformance.document import Section, conversations, sections, specification
from tests.harness import ROOT


def test_the_specification_is_that_of_the_checkout() -> None:
    assert specification() == (ROOT / "protocol.md").read_text(encoding="utf-8")


def test_conversations_are_found_with_their_streams_and_options() -> None:
    found = conversations(specification())
    assert len(found) > 40
    assert all(block.streams or "client" in block.options for _, block in found)
    assert {section.number for section, _ in found} == {f"8.{n}" for n in range(1, 10)}
    options = {key for _, block in found for key in block.options}
    assert options == {"restart", "reader", "dialect", "client", "other-protocol"}


def test_headings_within_a_block_are_text() -> None:
    text = "# 1. One\n\n**A name.** More.\n\n```sh\n# 2. no\n```\n\n# Two\nlast\n"
    before, one, two = sections(text.replace("\\\n", "\n"))
    assert (before.number, one.number, one.title, two.number, two.title) == (
        "",
        "1",
        "One",
        "",
        "Two",
    )
    (block,) = one.blocks()
    assert (block.kind, block.caption, block.text, block.number) == ("sh", "A name", "# 2. no\n", 5)
    assert one.blocks("text") == []
    assert block.streams == []


def test_a_block_that_does_not_end_is_a_fault() -> None:
    with pytest.raises(ValueError, match="section 3: a block does not end"):
        Section("3", "", ("```sh", "x"), 1).blocks()
