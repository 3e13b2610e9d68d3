"""Write the table of docs/pytorch.md: cd tests/pytorch && python -m clients"""

from clients.harness import DOCUMENT, with_table

DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
