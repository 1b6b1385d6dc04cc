"""Whether what refuses changes of the log is in place: triggers and their functions."""

from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.evidence.auditing._findings import Code, Finding
from app.evidence.canonical import sha256_hex

# Bits of pg_trigger.tgtype.
_ROW, _BEFORE, _DELETE, _UPDATE, _TRUNCATE = 1, 2, 8, 16, 32
_APPEND_ONLY = _BEFORE | _UPDATE | _DELETE | _TRUNCATE
_STAYS = _BEFORE | _DELETE | _TRUNCATE
_EACH_UPDATE = _BEFORE | _UPDATE | _ROW

# Table and trigger: when it fires and what it runs, as migrations 0001 and 0004 leave them.
TRIGGERS = {
    ("audit_entry", "audit_entry_append_only"): (_APPEND_ONLY, "lethe_refuse_change"),
    ("evidence_record", "evidence_record_append_only"): (_APPEND_ONLY, "lethe_refuse_change"),
    ("audit_log", "audit_log_stays"): (_STAYS, "lethe_refuse_change"),
    ("audit_log", "audit_log_moves_forward"): (_EACH_UPDATE, "lethe_log_moves_forward"),
    ("audit_checkpoint", "audit_checkpoint_append_only"): (_APPEND_ONLY, "lethe_refuse_change"),
    ("audit_anchor", "audit_anchor_append_only"): (_APPEND_ONLY, "lethe_refuse_change"),
    ("signing_key", "signing_key_stays"): (_STAYS, "lethe_refuse_change"),
    ("signing_key", "signing_key_is_published"): (_EACH_UPDATE, "lethe_key_stays"),
}
# SHA-256 of each function's source (pg_proc.prosrc).
FUNCTIONS = {
    "lethe_refuse_change": "d62c3deeb7e26e1c73292e24512945c530ff26df37da4a5fe9e720984d8623cc",
    "lethe_log_moves_forward": "be71c2db5f5bb77a02c90e8c56acfaa024980405211d82f1b2f482530420851b",
    "lethe_key_stays": "79d26fe22014d4e54d2881d2a94a1e71c336b9be2c7e589aa2b9a57107f7813c",
}
_TABLES = sorted({table for table, _ in TRIGGERS})

_FOUND_TRIGGERS = text(
    """
    SELECT c.relname, t.tgname, t.tgtype::int, t.tgenabled::text, p.proname, p.prosrc, l.lanname,
           t.tgqual IS NOT NULL OR cardinality(t.tgattr::int2[]) > 0 AS narrowed
    FROM pg_trigger t
    JOIN pg_class c ON c.oid = t.tgrelid
    JOIN pg_proc p ON p.oid = t.tgfoid
    JOIN pg_language l ON l.oid = p.prolang
    WHERE NOT t.tgisinternal
      AND t.tgrelid = ANY(ARRAY(SELECT to_regclass(n) FROM unnest(CAST(:tables AS text[])) n))
    """
)
_FOUND_RULES = text(
    """
    SELECT c.relname, r.rulename FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
    WHERE r.ev_class = ANY(ARRAY(SELECT to_regclass(n) FROM unnest(CAST(:tables AS text[])) n))
    """
)


def check_triggers(session: Session) -> Iterator[Finding]:
    """Compare the database's triggers with the migrations'."""
    tables = {"tables": _TABLES}
    found = {
        (table, name): values for table, name, *values in session.execute(_FOUND_TRIGGERS, tables)
    }
    for (table, name), expected in TRIGGERS.items():
        if (values := found.pop((table, name), None)) is None:
            yield _finding(table, f"The trigger {name}, which refuses changes, is gone.")
        elif problem := _problem(values, *expected):
            yield _finding(table, f"The trigger {name}, which refuses changes, {problem}.")
    for table, name in found:
        yield _finding(
            table, f"The trigger {name} is none of this service's, and may change what is written."
        )
    for table, name in session.execute(_FOUND_RULES, tables):
        yield _finding(
            table, f"The rule {name} is none of this service's, and may change what is written."
        )


def _problem(values: list[object], expected_type: int, expected_function: str) -> str | None:
    fires, enabled, function, source, language, is_narrowed = values
    if enabled != "A":
        what = "is switched off" if enabled == "D" else "can be switched off by a setting"
        return f"{what} (it has to be ENABLE ALWAYS)"
    if fires != expected_type or is_narrowed:
        return "does not fire for everything that it has to"
    digest = sha256_hex(str(source).encode())
    if (function, language) != (expected_function, "plpgsql") or digest != FUNCTIONS[
        expected_function
    ]:
        return "runs another function than the migrations wrote"
    return None


def _finding(table: str, sentence: str) -> Finding:
    return Finding(Code.TRIGGERS_MISSING, f"table {table}", sentence)
